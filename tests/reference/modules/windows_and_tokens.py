"""Which keys local and global attention see, pair by pair, as their definitions say."""

import torch


def local_keep(length, window_size, *, causal):
    """Return bool [length, length], after xFormers: causal windows hold one key more."""
    keep = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        for j in range(length):
            if causal:
                keep[i, j] = 0 <= i - j <= window_size
            else:
                keep[i, j] = abs(i - j) <= (window_size - 1) / 2
    return keep


def global_keep(is_global, *, causal):
    """Return bool [N, N] for the bool list of N tokens, of which those seen by or seeing all."""
    length = len(is_global)
    keep = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        for j in range(length):
            keep[i, j] = (is_global[i] or is_global[j]) and (j <= i or not causal)
    return keep
