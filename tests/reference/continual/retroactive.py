"""Continual retroactive attention as its paper says it: torch's attention anew for every window.

Hedegaard et al. 2022, arXiv:2201.06268, section 3.2: the output of a step is the attention of all
of the last L tokens to each other.
"""

import torch


def window_rows(mha, query, key, value, length, *, key_padding_mask=None, attn_mask=None):
    """Return the outputs [N, T - length + 1, length, E] of the windows that end at each step.

    mha: `torch.nn.MultiheadAttention` with batch_first. query, key, value: [N, T, features].
    key_padding_mask: bool [N, T]. attn_mask: of a window, as torch takes it.
    """
    outs = []
    for end in range(length, query.shape[1] + 1):
        at = slice(end - length, end)
        padding = None if key_padding_mask is None else key_padding_mask[:, at]
        if padding is not None and attn_mask is not None and attn_mask.dtype != torch.bool:
            padding = torch.zeros_like(padding, dtype=query.dtype).masked_fill(padding, -torch.inf)
        out, _ = mha(
            query[:, at],
            key[:, at],
            value[:, at],
            key_padding_mask=padding,
            attn_mask=attn_mask,
        )
        outs.append(out)
    return torch.stack(outs, 1)
