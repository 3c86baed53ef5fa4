"""Measure what the mechanisms cost as inputs grow: `python -m attn_modules.benchmark`.

Needs matplotlib and rich; in a clone, `pip install "./packages/attn-modules[benchmark]"`.
"""
