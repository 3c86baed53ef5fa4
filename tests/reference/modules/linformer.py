"""Linformer as its paper writes it, for one sequence and head."""

import math

import torch


def linformer_attention(q, k, v, e, f, keep=None):
    """Equation 7 of arXiv:2006.04768 for q, k [M, K], v [M, Kv], e and f [r, seq_len].

    Rows that are padding, and those missing from seq_len, are 0.
    """
    length = e.shape[1]
    full_k, full_v = k.new_zeros(length, k.shape[1]), v.new_zeros(length, v.shape[1])
    for i in range(len(k)):
        if keep is None or keep[i]:
            full_k[i], full_v[i] = k[i], v[i]
    return torch.softmax(q @ (e @ full_k).T / math.sqrt(q.shape[1]), -1) @ (f @ full_v)
