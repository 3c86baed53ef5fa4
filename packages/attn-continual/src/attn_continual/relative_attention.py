"""`RelativeAttention`: logits of content, of what it says of positions, and they of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal, cast, get_args

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

Mode = Literal["c2c", "c2p", "p2c"]
"""A term of the logits: content to content, content to position, position to content."""

_MODES: Final = get_args(Mode)


class GroupedLinear(nn.Module):
    """Project each group of features by itself.

    Shapes: x [..., groups * width] to [..., groups * out_width].
    Parameters: `weight` [groups, width, out_width] and `bias` [groups * out_width].
    """

    def __init__(self, in_features: int, out_features: int, n_groups: int) -> None:
        super().__init__()
        self.n_groups = n_groups
        shape = (n_groups, in_features // n_groups, out_features // n_groups)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters as `torch.nn.Linear` does, for the width of a group."""
        bound = 1 / math.sqrt(max(self.weight.shape[1], 1))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Return the projected features."""
        groups = x.unflatten(-1, (self.n_groups, -1)).unsqueeze(-2)
        return (groups @ self.weight).squeeze(-2).flatten(-2) + self.bias


class RelativeAttention(nn.Module):
    """Attend with logits of content and of relative positions along any number of coordinates.

    For query i, key j and each coordinate c, with Q, K the projected contents, PQ, PK the projected
    position embedding, and r = Z // 2 + relative_positions[i, j, c] within [0, Z):

        c2c = Q_i . K_j / sqrt(d),  c2p = sum_c Q_i^c . PK^c[r] / sqrt(d),
        p2c = sum_c PQ^c[r] . K_j^c / sqrt(d),
        logits = base_attn + (the sum of the terms) / sqrt(how many there are) + bias.

    Shapes: see `forward`. Letters: n samples, d = head_size, Z position_embedding's rows, h =
        n_heads + n_additional_heads.
    Cost: time and memory O(n h q k), which the logits have; positions cost O(n h (q + k) Z d).
    size: of the output, and the default of `query_size`, `key_size`.
    value_size: of the values; default: `key_size`.
    head_size: d; default: key_size // n_heads.
    position_embedding: [Z, features]; a `Parameter` is trained, a tensor is not. Z // 2 stands for
        a distance of 0. Needed for relative positions.
    dropout_p: in training, of attention weights, of the contents and of the position embedding.
    same_key_query_proj: one projection for keys and queries, of content and of positions.
    same_positional_key_query_proj: one for positions alone.
    n_coordinates: how many coordinates positions have; each owns a slice of the embedding's
        features and of every head.
    head_bias: add a learned number per head to the logits; weights do not change with it.
    do_pooling: whether values are attended; without, there are logits alone.
    mode: the terms, each once.
    n_additional_heads: heads with logits and no values, which come before the others.
    p2c_index: "same" reads r of (i, j) for p2c too, as EDS does; "transposed" that of (j, i), as
        DeBERTa does for c2p and p2c; it takes as many queries as keys.
    Raises: ValueError if sizes do not divide, or `mode` or `p2c_index` is another.
    Source: EDS-PDF's RelativeAttention; He et al. 2020, arXiv:2006.03654, eqs. 2 to 4.
    """

    position_embedding: Tensor | None

    def __init__(
        self,
        size: int,
        n_heads: int,
        query_size: int | None = None,
        key_size: int | None = None,
        value_size: int | None = None,
        head_size: int | None = None,
        position_embedding: Tensor | nn.Parameter | None = None,
        dropout_p: float = 0.0,
        same_key_query_proj: bool = False,
        same_positional_key_query_proj: bool = False,
        n_coordinates: int = 1,
        head_bias: bool = True,
        do_pooling: bool = True,
        mode: Sequence[Mode] = ("c2c", "p2c", "c2p"),
        n_additional_heads: int = 0,
        *,
        p2c_index: Literal["same", "transposed"] = "same",
    ) -> None:
        super().__init__()
        key_size = size if key_size is None else key_size
        query_size = size if query_size is None else query_size
        self.size, self.n_heads = size, n_heads
        self.value_size = key_size if value_size is None else value_size
        self.head_size = key_size // n_heads if head_size is None else head_size
        self.n_additional_heads = n_additional_heads
        self.n_coordinates = n_coordinates
        self.dropout_p = dropout_p
        self.do_pooling = do_pooling
        self.mode = cast("tuple[Mode, ...]", (mode,) if isinstance(mode, str) else tuple(mode))
        self.p2c_index = p2c_index
        self._check_sizes(position_embedding)
        heads = n_heads + n_additional_heads
        width = heads * self.head_size
        self.content_key_proj = nn.Linear(key_size, width)
        if same_key_query_proj and query_size != key_size:
            raise ValueError(
                "RelativeAttention: expected query_size equal to key_size with "
                f"same_key_query_proj, got {query_size} and {key_size}"
            )
        self.content_query_proj = (
            self.content_key_proj if same_key_query_proj else nn.Linear(query_size, width)
        )
        if do_pooling:
            self.content_value_proj = nn.Linear(self.value_size, size)
        self.bias = nn.Parameter(torch.zeros(heads)) if head_bias else None
        if isinstance(position_embedding, nn.Parameter):
            self.position_embedding = position_embedding
        else:
            self.register_buffer("position_embedding", position_embedding)
        if position_embedding is not None:
            features = position_embedding.shape[1]
            self.position_key_proj = GroupedLinear(features, width, n_coordinates)
            self.position_query_proj = (
                self.position_key_proj
                if same_key_query_proj or same_positional_key_query_proj
                else GroupedLinear(features, width, n_coordinates)
            )

    def forward(
        self,
        content_queries: Tensor,
        content_keys: Tensor | None = None,
        content_values: Tensor | None = None,
        mask: Tensor | None = None,
        relative_positions: Tensor | None = None,
        no_position_mask: Tensor | None = None,
        base_attn: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the outputs and the logits, or without values or pooling the logits alone.

        content_queries: [n, q, query_size].
        content_keys: [n, k, key_size]; default: the queries.
        content_values: [n, k, value_size]; None: nothing is pooled.
        mask: bool [n, k], [n, q, k] or [n, q, k, heads], True keeps a key; it counts for outputs.
        relative_positions: int64 [n, q, k, coordinates], of keys from queries; None: the terms of
            positions are left out.
        no_position_mask: bool [n, q, k], True leaves them out for a pair.
        base_attn: [n, q, k, h], added to the logits.
        Returns outputs [n, q, size], 0 for queries without keys, and logits [n, q, k, h].
        Raises: ValueError if a tensor does not fit, or positions are given without an embedding.
        """
        content_keys = content_queries if content_keys is None else content_keys
        terms = self._terms(content_queries, content_keys, relative_positions, no_position_mask)
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        logits = (total / math.sqrt(len(terms))).permute(0, 2, 3, 1)
        if self.bias is not None:
            logits = logits + self.bias
        if base_attn is not None:
            logits = base_attn + logits
        if content_values is None or not self.do_pooling:
            return logits
        return self._pool(logits, content_values, mask), logits

    def _check_sizes(self, position_embedding: Tensor | None) -> None:
        unknown = [term for term in self.mode if term not in _MODES]
        if unknown or not self.mode or len(set(self.mode)) != len(self.mode):
            raise ValueError(
                f"RelativeAttention: expected mode, some of {', '.join(_MODES)}, each once, got "
                f"{self.mode}"
            )
        if self.p2c_index not in ("same", "transposed"):
            raise ValueError(
                "RelativeAttention: expected p2c_index 'same' or 'transposed', got "
                f"{self.p2c_index!r}"
            )
        features = 0 if position_embedding is None else position_embedding.shape[1]
        rules = [("size", self.size, "n_heads", self.n_heads)] if self.do_pooling else []
        if position_embedding is not None:
            rules += [
                ("head_size", self.head_size, "n_coordinates", self.n_coordinates),
                ("position_embedding's features", features, "n_coordinates", self.n_coordinates),
            ]
        for name, number, of, divisor in rules:
            if number % divisor != 0:
                raise ValueError(
                    f"RelativeAttention: expected {name} to be a multiple of {of}, got {number} "
                    f"and {divisor}"
                )

    def _terms(
        self,
        content_queries: Tensor,
        content_keys: Tensor,
        relative_positions: Tensor | None,
        no_position_mask: Tensor | None,
    ) -> list[Tensor]:
        """Return the terms of the logits that there are, [n, h, q, k] each."""
        queries = self._by_head(self.content_query_proj(self._dropped(content_queries)))
        keys = self._by_head(self.content_key_proj(self._dropped(content_keys)))
        queries = queries / math.sqrt(self.head_size)
        terms = [queries @ keys.mT] if "c2c" in self.mode else []
        if relative_positions is not None and self.mode != ("c2c",):
            rows = self._rows(relative_positions, queries.shape[2], keys.shape[2])
            embedding = self._dropped(cast("Tensor", self.position_embedding))
            if "c2p" in self.mode:
                table = self._by_coordinate(self.position_key_proj(embedding))
                terms.append(self._looked_up(queries, table, rows))
            if "p2c" in self.mode:
                table = self._by_coordinate(self.position_query_proj(embedding))
                rows = rows if self.p2c_index == "transposed" else rows.transpose(1, 2)
                scaled = keys / math.sqrt(self.head_size)
                terms.append(self._looked_up(scaled, table, rows).mT)
            if no_position_mask is not None:
                first = 1 if "c2c" in self.mode else 0
                hidden = no_position_mask[:, None]
                terms[first:] = [term.masked_fill(hidden, 0.0) for term in terms[first:]]
        if not terms:
            raise ValueError(
                f"RelativeAttention: expected relative_positions with mode={self.mode}, which has "
                "no term of content alone, got None"
            )
        return terms

    def _looked_up(self, rows_of_content: Tensor, table: Tensor, index: Tensor) -> Tensor:
        """Return sum_c x_i^c . table^c[index[i, j, c]]: [n, h, rows, others].

        Shapes: x [n, h, rows, d]; table [coordinates, h, Z, d / coordinates]; index [n, rows,
            others, coordinates].
        """
        parts = rows_of_content.chunk(self.n_coordinates, dim=-1)
        total: Tensor | None = None
        for c, part in enumerate(parts):
            by_position = part @ table[c].mT
            looked_up = by_position.gather(
                3, index[..., c].unsqueeze(1).expand(-1, by_position.shape[1], -1, -1)
            )
            total = looked_up if total is None else total + looked_up
        return cast("Tensor", total)

    def _pool(self, logits: Tensor, content_values: Tensor, mask: Tensor | None) -> Tensor:
        weights = logits[..., self.n_additional_heads :].permute(0, 3, 1, 2)
        if mask is not None:
            keep = self._keep(mask)
            weights = weights.masked_fill(~keep, -torch.inf)
            weights = weights.masked_fill(~keep.any(-1, keepdim=True), 0.0).softmax(-1)
            weights = weights.masked_fill(~keep, 0.0)
        else:
            weights = weights.softmax(-1)
        values = self.content_value_proj(content_values).unflatten(-1, (self.n_heads, -1))
        pooled = self._dropped(weights) @ values.transpose(1, 2)
        return pooled.transpose(1, 2).flatten(2)

    def _keep(self, mask: Tensor) -> Tensor:
        """Return a mask as [n, heads or 1, q or 1, k]."""
        if mask.dtype != torch.bool or mask.dim() not in (2, 3, 4):
            raise ValueError(
                "RelativeAttention: expected mask, bool [n, k], [n, q, k] or [n, q, k, heads], "
                f"got {mask.dtype} {list(mask.shape)}"
            )
        if mask.dim() == 2:
            return mask[:, None, None]
        return mask[:, None] if mask.dim() == 3 else mask.permute(0, 3, 1, 2)

    def _rows(self, relative_positions: Tensor, queries: int, keys: int) -> Tensor:
        """Return the embedding's rows of each pair, int64 [n, q, k, coordinates]."""
        if self.position_embedding is None:
            raise ValueError(
                "RelativeAttention: expected a position_embedding at construction with "
                "relative_positions, got None"
            )
        expected = [queries, keys, self.n_coordinates]
        if list(relative_positions.shape[1:]) != expected or relative_positions.dim() != 4:
            raise ValueError(
                f"RelativeAttention: expected relative_positions [n, {queries}, {keys}, "
                f"{self.n_coordinates}], got {list(relative_positions.shape)}"
            )
        if self.p2c_index == "transposed" and queries != keys:
            raise ValueError(
                "RelativeAttention: expected as many keys as queries with "
                f"p2c_index='transposed', got {keys} and {queries}"
            )
        count = self.position_embedding.shape[0]
        return (count // 2 + relative_positions).clamp(0, count - 1)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)

    def _by_coordinate(self, table: Tensor) -> Tensor:
        """View projected positions [Z, h * d] as [coordinates, h, Z, d / coordinates]."""
        heads = self.n_heads + self.n_additional_heads
        return table.unflatten(-1, (self.n_coordinates, heads, -1)).permute(1, 2, 0, 3)

    def _dropped(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.dropout_p, self.training)
