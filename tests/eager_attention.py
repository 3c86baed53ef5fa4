"""What the tests of the torch API compare with: the definition of attention in eager torch."""

import torch


def softmax_attention(query, key, value, bias=None, scale=None):
    """Return softmax(scale * query key^T + bias) value for [B, M, H, K] inputs; empty rows give 0.

    Key and value heads are repeated to query's; a boolean bias keeps where it is True.
    """
    groups = query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(groups, dim=2) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * torch.einsum("bihk,bjhk->bhij", query, key)
    if bias is not None and bias.dtype == torch.bool:
        scores = scores.masked_fill(~bias, float("-inf"))
    elif bias is not None:
        scores = scores + bias
    is_empty = (scores == float("-inf")).all(-1, keepdim=True)
    weights = torch.where(is_empty, 0.0, torch.softmax(scores.masked_fill(is_empty, 0.0), -1))
    return torch.einsum("bhij,bjhv->bihv", weights, value)


def make_inputs(batch=2, mq=5, mkv=7, hq=4, hkv=4, width=8, value_width=6, **options):
    """Return the same random query, key and value at each call, float64 unless told."""
    options = {"dtype": torch.float64, **options}
    generator = torch.Generator().manual_seed(17)
    shapes = [(batch, mq, hq, width), (batch, mkv, hkv, width), (batch, mkv, hkv, value_width)]
    return [torch.randn(shape, generator=generator, **options) for shape in shapes]
