"""Encoders over streams by torch's own layers: window by window, and layer by layer."""

import torch


def window_rows(encoder, x, length, query_index, *, padding=None, mask=None):
    """Return a row of torch's encoder, or layer, over each window of [N, T, E]: [N, T', E].

    padding: bool [N, T], True hides a step. mask: of a window, as torch takes it. Both may hide no
    query's every key, which torch answers with NaN.
    """
    outs = []
    for end in range(length, x.shape[1] + 1):
        at = slice(end - length, end)
        hidden = None if padding is None else padding[:, at]
        if hidden is not None and mask is not None and mask.dtype != torch.bool:
            hidden = torch.zeros(hidden.shape, dtype=x.dtype).masked_fill(hidden, -torch.inf)
        outs.append(encoder(x[:, at], mask, src_key_padding_mask=hidden)[:, query_index])
    return torch.stack(outs, 1)


def newest_rows(encoder, x, length, **masks):
    """Return the last row of torch's encoder over each window of [N, T, E]: [N, T', E]."""
    return window_rows(encoder, x, length, -1, **masks)


def stacked_rows(encoder, x, length, query_index=-1, *, padding=None, mask=None):
    """Return the outputs of layers that each see the last outputs of the layer before.

    DeepCoT, arXiv:2511.17693: each layer gives a row of its window, the newest or that of
    `query_index`. A step that is hidden is so in every layer. encoder: torch's, its layers
    batch_first. x [N, T, E]; result [N, T - n (length - 1), E] of n layers.
    """
    for layer in encoder.layers:
        x = window_rows(layer, x, length, query_index, padding=padding, mask=mask)
        if padding is not None:
            first = query_index % length
            padding = padding[:, first : first + x.shape[1]]
    return x if encoder.norm is None else encoder.norm(x)
