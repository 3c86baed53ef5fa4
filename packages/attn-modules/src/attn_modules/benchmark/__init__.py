"""Measure what the mechanisms cost as inputs grow: `python -m attn_modules.benchmark`.

Needs matplotlib and rich: `pip install attn-modules[benchmark]`.
"""
