"""Measure steps and relative positions against plain torch: `python -m attn_continual.benchmark`.

Needs matplotlib and rich; in a clone, `pip install "./packages/attn-continual[benchmark]"`.
"""
