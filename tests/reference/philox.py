"""Dropout's draws as `attn/mask.h` defines them, in NumPy.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.
"""

import numpy as np
import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)  # the golden ratio, sqrt(3) - 1
LOW_WORD = np.uint64(0xFFFFFFFF)


def philox4x32_10(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Return ten rounds of Philox over counters uint32 [..., 4]: uint32 [..., 4]."""
    words = [counter[..., i].astype(np.uint64) for i in range(4)]
    keys = list(key)
    for _ in range(10):
        product_0 = words[0] * np.uint64(MULTIPLIERS[0])
        product_2 = words[2] * np.uint64(MULTIPLIERS[1])
        words = [
            (product_2 >> np.uint64(32)) ^ words[1] ^ np.uint64(keys[0]),
            product_2 & LOW_WORD,
            (product_0 >> np.uint64(32)) ^ words[3] ^ np.uint64(keys[1]),
            product_0 & LOW_WORD,
        ]
        keys = [(k + step) % 2**32 for k, step in zip(keys, KEY_INCREMENTS, strict=True)]
    return np.stack(words, axis=-1).astype(np.uint32)


def draws(shape: tuple[int, int, int, int], seed: int, offset: int) -> np.ndarray:
    """Return the draw of every probability: uint32 [B, H, Mq, Mkv]."""
    batch, heads, num_queries, num_keys = shape
    offset_words = np.array([offset % 2**32, offset >> 32, 0, 0], np.uint32)
    key = philox4x32_10(offset_words, (seed % 2**32, seed >> 32))
    grid = np.ix_(*map(np.arange, (batch, heads, num_queries, (num_keys + 3) // 4)))
    counter = np.stack(np.broadcast_arrays(*grid), axis=-1).astype(np.uint32)
    words = philox4x32_10(counter, (int(key[0]), int(key[1])))
    return words.reshape(*counter.shape[:3], 4 * counter.shape[3])[..., :num_keys]


def keep_factors(shape: tuple[int, int, int, int], p: float, seed: int, offset: int) -> Tensor:
    """Return what dropout multiplies with: 0 or 1 / (1 - p), float64 [B, H, Mq, Mkv]."""
    if p == 1.0:
        return torch.zeros(shape, dtype=torch.float64)
    kept = draws(shape, seed, offset) >= p * 2.0**32
    return torch.from_numpy(kept / (1.0 - p))
