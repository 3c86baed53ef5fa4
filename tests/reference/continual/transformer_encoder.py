"""Encoders over streams by torch's own layers: window by window, and layer by layer."""

import torch


def newest_rows(encoder, x, length):
    """Return the last row of torch's encoder over each window of [N, T, E]: [N, T', E]."""
    ends = range(length, x.shape[1] + 1)
    return torch.stack([encoder(x[:, end - length : end])[:, -1] for end in ends], 1)


def stacked_rows(encoder, x, length):
    """Return the outputs of layers that each see the last outputs of the layer before.

    DeepCoT, arXiv:2511.17693: each layer gives the newest row of its window. encoder: torch's, its
    layers batch_first. x [N, T, E]; result [N, T - n (length - 1), E] of n layers.
    """
    for layer in encoder.layers:
        x = newest_rows(layer, x, length)
    return x if encoder.norm is None else encoder.norm(x)
