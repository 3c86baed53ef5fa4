"""Time attention against torch's SDPA and against the machine: `python -m attn_ops.benchmark`.

Needs torch, matplotlib and rich: `pip install attn-ops[benchmark]`.
"""
