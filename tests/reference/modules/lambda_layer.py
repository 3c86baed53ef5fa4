"""Lambda layers with every query's linear map in memory."""

import torch


def apply_lambdas(q, k, v, embeddings, seq_len, keep=None):
    """Return q [..., Mq, K] applied to the maps of k [..., Mkv, K] and v [..., Mkv, Kv].

    keep: bool, broadcastable to [..., Mkv]. embeddings: [2 * seq_len - 1, K].
    """
    if keep is not None:
        k = k.masked_fill(~keep[..., None], -1e30)
        v = v.masked_fill(~keep[..., None], 0)
    content = torch.einsum("...mk,...mv->...kv", k.exp() / k.exp().sum(-2, keepdim=True), v)
    rows = []
    for n in range(q.shape[-2]):
        distances = torch.stack([embeddings[m - n + seq_len - 1] for m in range(k.shape[-2])])
        position = torch.einsum("mk,...mv->...kv", distances, v)
        rows.append(torch.einsum("...k,...kv->...v", q[..., n, :], content + position))
    return torch.stack(rows, -2)
