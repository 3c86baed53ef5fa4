"""Attention as its formula says, with every score in a matrix: what exact mechanisms must give."""

import torch


def attend(q, k, v, keep=None, bias=None):
    """Return softmax(q k^T / sqrt(K) + bias) v over kept keys; 0 where a query sees none.

    keep: bool, broadcastable to [..., Mq, Mkv]. Keys that no query sees may hold NaN.
    """
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if bias is not None:
        scores = scores + bias
    if keep is None:
        keep = torch.ones_like(scores, dtype=torch.bool)
    keep = (keep & (scores != -torch.inf)).expand(scores.shape)
    scores = scores.masked_fill(~keep, -1e30)
    weights = torch.where(keep.any(-1, keepdim=True), scores.softmax(-1), 0.0).masked_fill(~keep, 0)
    return torch.einsum("...ij,...jd->...id", weights, v.nan_to_num())
