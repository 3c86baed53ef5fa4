"""Attend with NumPy arrays alone: causal, with grouped heads, and merged from two halves."""

import numpy as np

from attn_ops.array import CAUSAL, attention

rng = np.random.default_rng(0)
query = rng.standard_normal((2, 128, 8, 64), dtype=np.float32)  # [B, M, Hq, K]
key = rng.standard_normal((2, 128, 2, 64), dtype=np.float32)  # [B, M, Hkv, K]: 4 heads share each
value = rng.standard_normal((2, 128, 2, 64), dtype=np.float32)

out = attention(query, key, value, band=CAUSAL)
print("out", out.shape, out.dtype)
# The first query sees one key only.
print("first query", "is" if np.allclose(out[:, 0, :4], value[:, 0, :1]) else "is not", "value 0")

# The log-sum-exp says what each half of the keys weighs, so that halves can be put together.
left, left_lse = attention(query, key[:, :64], value[:, :64], return_lse=True)  # lse [B, Hq, M]
right, right_lse = attention(query, key[:, 64:], value[:, 64:], return_lse=True)
weight = 1 / (1 + np.exp(right_lse - left_lse))  # of the left half
weight = weight.transpose(0, 2, 1)[..., None]
merged = weight * left + (1 - weight) * right
whole = attention(query, key, value)
print(f"two halves against the whole: {np.abs(merged - whole).max():.1e}")
