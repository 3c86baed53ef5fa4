"""Rotary embeddings as rotations of the plane, one position and one pair of channels at a time."""

import math

import torch


def turn(x, base=10000.0):
    """Return x [..., M, K] with the plane of channels i and i + K / 2 turned in each row."""
    out = x.clone()
    half = x.shape[-1] // 2
    for position in range(x.shape[-2]):
        for pair in range(half):
            angle = position * base ** (-2 * pair / x.shape[-1])
            number = torch.complex(x[..., position, pair], x[..., position, pair + half])
            number = number * complex(math.cos(angle), math.sin(angle))
            out[..., position, pair] = number.real
            out[..., position, pair + half] = number.imag
    return out
