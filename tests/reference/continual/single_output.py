"""Continual single-output attention as its paper says it: torch's attention anew for every window.

Hedegaard et al. 2022, arXiv:2201.06268, equation 6: the output of a step is the row of one query in
the attention of the last L tokens.
"""

import torch


def window_outputs(
    mha, query, key, value, length, query_index, *, key_padding_mask=None, attn_mask=None
):
    """Return the outputs [N, T - length + 1, E] of the windows that end at steps length, ..., T.

    mha: `torch.nn.MultiheadAttention` with batch_first. query, key, value: [N, T, features].
    key_padding_mask: bool [N, T]. attn_mask: of a window, as torch takes it.
    """
    outs = []
    for end in range(length, query.shape[1] + 1):
        at = slice(end - length, end)
        out, _ = mha(
            query[:, at],
            key[:, at],
            value[:, at],
            key_padding_mask=None if key_padding_mask is None else key_padding_mask[:, at],
            attn_mask=attn_mask,
        )
        outs.append(out[:, query_index])
    return torch.stack(outs, 1)
