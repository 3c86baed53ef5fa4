"""Measure steps and relative positions against plain torch: `python -m attn_continual.benchmark`.

Needs matplotlib and rich: `pip install attn-continual[benchmark]`.
"""
