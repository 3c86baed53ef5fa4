"""DeBERTa's self-attention as a `RelativeAttention`, with its weights and its log buckets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attn_continual.relative_attention import GroupedLinear, Mode, RelativeAttention


def log_bucket_positions(
    num_queries: int,
    num_keys: int,
    num_buckets: int = -1,
    max_distance: int = -1,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return DeBERTa's relative positions of queries from keys: int64 [1, q, k, 1].

    A distance i - j of at most num_buckets / 2 is itself; longer ones share buckets, whose widths
    grow exponentially up to `max_distance`. Without buckets every distance is itself.
    Raises: ValueError if there are buckets and no `max_distance` beyond half of them.
    Source: He et al. 2021, arXiv:2111.09543; the published code of DeBERTa-v2.

    >>> log_bucket_positions(1, 9, num_buckets=4, max_distance=16)[0, 0, :, 0].tolist()
    [0, -1, -2, -3, -3, -3, -3, -3, -3]
    """
    queries = torch.arange(num_queries, device=device)
    distance = queries[:, None] - torch.arange(num_keys, device=device)
    if num_buckets > 0:
        distance = _log_buckets(distance, num_buckets, max_distance)
    return distance[None, :, :, None]


def _log_buckets(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    middle = num_buckets // 2
    if middle < 1 or max_distance - 1 <= middle:
        raise ValueError(
            "log_bucket_positions: expected num_buckets >= 2 and max_distance beyond half of them, "
            f"got {num_buckets} and {max_distance}"
        )
    # In float32 and in this order, as the published code: other roundings move the borders.
    lengths = distance.abs().clamp(min=middle)
    longest = torch.tensor((max_distance - 1) / middle, device=distance.device)
    share = torch.log(lengths / middle) / torch.log(longest)
    bucket = torch.ceil(share * (middle - 1)) + middle
    far = (bucket * distance.sign()).to(torch.int64)
    return torch.where(distance.abs() <= middle, distance, far)


def relative_attention_from_deberta(
    attention: nn.Module, rel_embeddings: Tensor, dropout_p: float = 0.0
) -> RelativeAttention:
    """Return a layer with copies of the weights of DeBERTa-v2's self-attention.

    It equals the original in evaluation; call it with content_queries, content_keys and
    content_values all the hidden states, mask [n, q, k], and relative_positions of
    `log_bucket_positions(q, k, attention.position_buckets, attention.max_relative_positions)`. A
    query without keys gives 0, not the mean of all values.

    attention: transformers' `DisentangledSelfAttention`, the `attention.self` of a layer.
    rel_embeddings: [rows, hidden], after the model's LayerNorm if it has one: what
        `encoder.get_rel_embedding()` returns. A `Parameter` stays one.
    dropout_p: of the layer, whose places are not all of DeBERTa's.
    Raises: ValueError if the attention has no relative positions, or there are too few rows;
        TypeError if it is another module.
    """
    source: Any = attention
    _check_deberta(source, rel_embeddings)
    is_parameter = isinstance(rel_embeddings, nn.Parameter)
    embedding = rel_embeddings.detach()[: _num_rows(source)].clone()
    query = source.query_proj
    layer = RelativeAttention(
        source.all_head_size,
        source.num_attention_heads,
        query_size=query.in_features,
        key_size=query.in_features,
        head_size=source.attention_head_size,
        position_embedding=nn.Parameter(embedding) if is_parameter else embedding,
        dropout_p=dropout_p,
        head_bias=False,
        mode=_mode(source.pos_att_type),
    ).to(query.weight)
    shares = source.share_att_key
    with torch.no_grad():
        for name in ("query", "key", "value"):
            getattr(layer, f"content_{name}_proj").load_state_dict(
                getattr(source, f"{name}_proj").state_dict()
            )
        if "c2p" in layer.mode:
            _copy(source.key_proj if shares else source.pos_key_proj, layer.position_key_proj)
        if "p2c" in layer.mode:
            _copy(source.query_proj if shares else source.pos_query_proj, layer.position_query_proj)
    return layer.train(attention.training)


def _check_deberta(source: Any, rel_embeddings: Tensor) -> None:  # noqa: ANN401  transformers' own
    if not hasattr(source, "pos_ebd_size"):
        raise TypeError(
            "relative_attention_from_deberta: expected a DisentangledSelfAttention, the "
            f"attention.self of a layer, got {type(source).__name__}"
        )
    if not source.relative_attention or not source.pos_att_type:
        raise ValueError(
            "relative_attention_from_deberta: expected relative_attention with c2p or p2c, got "
            f"relative_attention={source.relative_attention}, pos_att_type={source.pos_att_type}"
        )
    if rel_embeddings.shape[0] < _num_rows(source):
        raise ValueError(
            f"relative_attention_from_deberta: expected rel_embeddings with {_num_rows(source)} "
            f"rows, got {rel_embeddings.shape[0]}"
        )


def _num_rows(source: Any) -> int:  # noqa: ANN401
    """Return how many rows of the embedding are read: one for each bucket of either sign."""
    return 2 * source.pos_ebd_size


def _mode(pos_att_type: list[str]) -> tuple[Mode, ...]:
    positions: tuple[Mode, ...] = ("c2p", "p2c")
    return ("c2c", *(term for term in positions if term in pos_att_type))


def _copy(linear: nn.Linear, grouped: GroupedLinear) -> None:
    grouped.weight.copy_(linear.weight.mT[None])
    grouped.bias.copy_(linear.bias[None])
