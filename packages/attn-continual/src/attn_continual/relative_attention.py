"""`RelativeAttention`: logits of content to content, content to position, position to content."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal, cast, get_args

import torch
from torch import Tensor, nn

from attn_continual._disentangled_attention import disentangled_attention
from attn_continual._disentangled_logits import DisentangledCall
from attn_continual._distance_rows import DistanceRows
from attn_continual._step_checks import check_dtype
from attn_continual.grouped_linear import GroupedLinear, check_multiple
from attn_continual.position_attention import attend_by_position
from attn_ops.dropout import draw_seed
from attn_ops.scalars import check_counts, check_probability

if TYPE_CHECKING:
    from collections.abc import Sequence

Mode = Literal["c2c", "c2p", "p2c"]
"""A term of the logits: content to content, content to position, position to content."""

_MODES: Final = get_args(Mode)
_INTEGERS: Final = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class RelativeAttention(nn.Module):
    """Attend with logits of content and of relative positions along any number of coordinates.

    For query i, key j and each coordinate c, with Q, K the projected contents, PQ, PK the projected
    position embedding, and r = Z // 2 + relative_positions[i, j, c] within [0, Z):

        c2c = Q_i . K_j / sqrt(d),  c2p = sum_c Q_i^c . PK^c[r] / sqrt(d),
        p2c = sum_c PQ^c[r] . K_j^c / sqrt(d),
        logits = base_attn + (the sum of the terms) / sqrt(how many there are) + bias.

    Shapes: see `forward`. Letters: n samples, d = head_size, Z position_embedding's rows, h =
        n_heads + n_additional_heads.
    Cost: time O(n h (q k + (q + k) Z) d). Memory, beyond the logits: O(k (q + Z)) of a few queries
        and heads, forward and backward. Where positions have one coordinate and distance alone
        counts, as in a sequence, outputs come from `attend_by_position`, which takes a fraction of
        the time; compiled graphs do not look.
    size: of the output, and the default of `query_size`, `key_size`.
    value_size: of the values; default: `key_size`.
    head_size: d; default: key_size / n_heads.
    position_embedding: [Z, features]; a `Parameter` is trained, a tensor is not. Z // 2 stands for
        a distance of 0. Needed for relative positions.
    dropout_p: in training, of attention weights, of the contents and of the position embedding.
    same_key_query_proj: one projection for keys and queries, of content and of positions.
    same_positional_key_query_proj: one for positions alone.
    n_coordinates: how many coordinates positions have; each owns a slice of the embedding's
        features and of every head.
    head_bias: add a learned number per head to the logits; weights do not change with it, so that
        it may have no gradient where logits are not used.
    do_pooling: whether values are attended; without, there are logits alone.
    mode: the terms, each once.
    n_additional_heads: heads with logits and no values, which come before the others.
    p2c_index: "same" reads r of (i, j) for p2c too, as EDS and DeBERTa's published code do;
        "transposed" that of (j, i), as DeBERTa's paper does; it takes as many queries as keys.
    Raises: ValueError if sizes do not divide or are none, or `mode` or `p2c_index` is another.
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
        if head_size is None:
            check_multiple("RelativeAttention", "key_size", key_size, "n_heads", n_heads)
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
        if same_key_query_proj and query_size != key_size:
            raise ValueError(
                "RelativeAttention: expected query_size equal to key_size with "
                f"same_key_query_proj, got {query_size} and {key_size}"
            )
        self._make_content_projections(query_size, key_size, same_key_query_proj)
        self.bias = nn.Parameter(torch.zeros(self._heads)) if head_bias else None
        self._make_position_projections(
            position_embedding, same_key_query_proj or same_positional_key_query_proj
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
        *,
        need_logits: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the outputs and the logits, or without values or pooling the logits alone.

        content_queries: [n, q, query_size].
        content_keys: [n, k, key_size]; default: the queries.
        content_values: [n, k, value_size]; None: nothing is pooled.
        mask: bool [n, k], [n, q, k] or [n, q, k, heads], True keeps a key; it counts for outputs.
        relative_positions: int [n, q, k, coordinates], of keys from queries; None: the terms of
            positions are left out.
        no_position_mask: bool [n, q, k], True leaves them out for a pair.
        base_attn: [n, q, k, h], added to the logits.
        need_logits: False returns the outputs alone, and makes no tensor of logits.
        Returns outputs [n, q, size], 0 for queries without keys, and logits [n, q, k, h].
        Raises: ValueError if a tensor does not fit, positions are given without an embedding, or
            neither outputs nor logits are wanted.
        """
        content_keys = content_queries if content_keys is None else content_keys
        if not self.do_pooling:
            content_values = None
        if content_values is None and not need_logits:
            raise ValueError(
                "RelativeAttention: expected content_values and do_pooling with need_logits=False, "
                "got neither outputs nor logits to return"
            )
        self._check_inputs(content_queries, content_keys, content_values, base_attn)
        queries = self.content_query_proj(self._dropped(content_queries))
        keys = self.content_key_proj(self._dropped(content_keys))
        values = self._values(content_values)
        terms = self._terms(relative_positions)
        if "c2p" in terms or "p2c" in terms:
            self._check_positions(relative_positions, no_position_mask, queries, keys)
        else:
            relative_positions = no_position_mask = None
        call = DisentangledCall(
            query=queries.unflatten(-1, (self._heads, self.head_size)),
            key=keys.unflatten(-1, (self._heads, self.head_size)),
            value=values,
            key_table=self._table(self.position_key_proj) if "c2p" in terms else None,
            query_table=self._table(self.position_query_proj) if "p2c" in terms else None,
            head_bias=self.bias,
            base=None if base_attn is None else base_attn.permute(0, 3, 1, 2),
            positions=relative_positions,
            no_position=None if no_position_mask is None else no_position_mask[:, None],
            keep=None if mask is None or values is None else self._keep(mask, queries, keys),
            dropout_seed=None,
            scale=1 / math.sqrt(self.head_size * len(terms)),
            p=self.dropout_p if self.training and values is not None else 0.0,
            has_content="c2c" in terms,
            transposes=self.p2c_index == "transposed",
            keeps_logits=need_logits,
        )
        logits, pooled = _attend(call)
        logits = logits.permute(0, 2, 3, 1)
        if values is None:
            return logits
        return (pooled.flatten(2), logits) if need_logits else pooled.flatten(2)

    @property
    def _heads(self) -> int:
        """How many heads have logits."""
        return self.n_heads + self.n_additional_heads

    def _make_content_projections(self, query_size: int, key_size: int, is_shared: bool) -> None:
        width = self._heads * self.head_size
        self.content_key_proj = nn.Linear(key_size, width)
        self.content_query_proj = (
            self.content_key_proj if is_shared else nn.Linear(query_size, width)
        )
        if self.do_pooling:
            self.content_value_proj = nn.Linear(self.value_size, self.size)

    def _make_position_projections(self, embedding: Tensor | None, is_shared: bool) -> None:
        if isinstance(embedding, nn.Parameter):
            self.position_embedding = embedding
        else:
            self.register_buffer("position_embedding", embedding)
        if embedding is None:
            return
        sizes = (embedding.shape[1], self._heads * self.head_size, self.n_coordinates)
        self.position_key_proj = GroupedLinear(*sizes)
        self.position_query_proj = self.position_key_proj if is_shared else GroupedLinear(*sizes)

    def _values(self, content: Tensor | None) -> Tensor | None:
        """Return the projected values [n, k, n_heads, size / n_heads]; None without any."""
        if content is None:
            return None
        return self.content_value_proj(self._dropped(content)).unflatten(-1, (self.n_heads, -1))

    def _check_numbers(self) -> None:
        who = type(self).__name__
        sizes = {"n_heads": self.n_heads, "head_size": self.head_size}
        check_counts(who, **sizes, n_coordinates=self.n_coordinates)
        check_counts(who, 0, n_additional_heads=self.n_additional_heads)
        check_probability(who, "dropout_p", self.dropout_p)

    def _check_sizes(self, position_embedding: Tensor | None) -> None:
        self._check_numbers()
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
        if self.do_pooling:
            check_multiple("RelativeAttention", "size", self.size, "n_heads", self.n_heads)
        if position_embedding is None:
            return
        if position_embedding.dim() != 2 or position_embedding.shape[0] == 0:
            raise ValueError(
                "RelativeAttention: expected position_embedding [positions, features], got "
                f"{list(position_embedding.shape)}"
            )
        features, of = position_embedding.shape[1], ("n_coordinates", self.n_coordinates)
        check_multiple("RelativeAttention", "head_size", self.head_size, *of)
        check_multiple("RelativeAttention", "position_embedding's features", features, *of)

    def _check_inputs(
        self, queries: Tensor, keys: Tensor, values: Tensor | None, base_attn: Tensor | None
    ) -> None:
        """Raise ValueError unless samples, rows, features and dtypes fit."""
        sizes = (self.content_query_proj.in_features, self.content_key_proj.in_features)
        axes = (queries.dim(), keys.dim())
        features = (queries.shape[-1], keys.shape[-1])
        if axes != (3, 3) or features != sizes or queries.shape[0] != keys.shape[0]:
            raise ValueError(
                f"RelativeAttention: expected content_queries [n, q, {sizes[0]}] and content_keys "
                f"[n, k, {sizes[1]}], got {list(queries.shape)} and {list(keys.shape)}"
            )
        rows = (*keys.shape[:2], self.value_size)
        if values is not None and values.shape != rows:
            raise ValueError(
                f"RelativeAttention: expected content_values {list(rows)}, a row for each key, got "
                f"{list(values.shape)}"
            )
        for name, x in (("queries", queries), ("keys", keys), ("values", values)):
            if x is not None:
                check_dtype(f"content_{name}", x, self.content_query_proj.weight)
        full = (queries.shape[0], queries.shape[1], keys.shape[1], self._heads)
        if base_attn is not None and not (
            base_attn.is_floating_point() and _broadcasts(base_attn, full)
        ):
            raise ValueError(
                f"RelativeAttention: expected base_attn, floating point {list(full)}, got "
                f"{base_attn.dtype} {list(base_attn.shape)}"
            )

    def _terms(self, relative_positions: Tensor | None) -> tuple[Mode, ...]:
        """Return the terms of the logits that there are."""
        terms: tuple[Mode, ...] = self.mode
        if relative_positions is None:
            terms = ("c2c",) if "c2c" in terms else ()
        if not terms:
            raise ValueError(
                f"RelativeAttention: expected relative_positions with mode={self.mode}, which has "
                "no term of content alone, got None"
            )
        return terms

    def _check_positions(
        self,
        positions: Tensor | None,
        no_position_mask: Tensor | None,
        queries: Tensor,
        keys: Tensor,
    ) -> None:
        if self.position_embedding is None:
            raise ValueError(
                "RelativeAttention: expected a position_embedding at construction with "
                "relative_positions, got None"
            )
        full = (queries.shape[0], queries.shape[1], keys.shape[1])
        exact = (1, 0, 0)  # where an extent of 1 stands for all
        if positions is not None and (
            positions.dtype not in _INTEGERS
            or positions.dim() != 4
            or positions.shape[3] != self.n_coordinates
            or not _broadcasts(positions[..., 0], full, exact)
        ):
            raise ValueError(
                f"RelativeAttention: expected relative_positions of integers {list(full)} and "
                f"{self.n_coordinates} coordinates, got {positions.dtype} {list(positions.shape)}"
            )
        if no_position_mask is not None and (
            no_position_mask.dtype != torch.bool or not _broadcasts(no_position_mask, full)
        ):
            raise ValueError(
                f"RelativeAttention: expected no_position_mask, bool {list(full)}, got "
                f"{no_position_mask.dtype} {list(no_position_mask.shape)}"
            )
        if self.p2c_index == "transposed" and queries.shape[1] != keys.shape[1]:
            raise ValueError(
                "RelativeAttention: expected as many keys as queries with "
                f"p2c_index='transposed', got {keys.shape[1]} and {queries.shape[1]}"
            )

    def _keep(self, mask: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """Return a mask as [n or 1, heads or 1, q or 1, k or 1]."""
        full = (queries.shape[0], queries.shape[1], keys.shape[1], self.n_heads)
        if mask.dim() == 2:
            by_pair = mask[:, None, :, None]
        else:
            by_pair = mask.unsqueeze(3) if mask.dim() == 3 else mask
        if mask.dtype != torch.bool or not _broadcasts(by_pair, full):
            samples, *pairs = full
            raise ValueError(
                f"RelativeAttention: expected mask, bool [{samples}, {pairs[1]}], {list(full[:3])} "
                f"or {list(full)}, got {mask.dtype} {list(mask.shape)}"
            )
        return by_pair.permute(0, 3, 1, 2)

    def _table(self, projection: nn.Module) -> Tensor:
        """Return the projected positions [coordinates, h, Z, d / coordinates]."""
        projected = projection(self._dropped(cast("Tensor", self.position_embedding)))
        return projected.unflatten(-1, (self.n_coordinates, self._heads, -1)).permute(1, 2, 0, 3)

    def _dropped(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.dropout_p, self.training)


def _attend(call: DisentangledCall) -> tuple[Tensor, Tensor]:
    """Return logits [n, h, q, k] and outputs [n, q, H, v]; see `disentangled_attention`."""
    pooled = _attend_by_distance(call)
    if pooled is None:
        seed = draw_seed("RelativeAttention", call.p, call.query.device)
        return disentangled_attention(call._replace(dropout_seed=seed))
    if not call.keeps_logits:
        return call.query.new_empty(pooled.shape[0], 0, 0, 0), pooled
    logits, _ = disentangled_attention(call._replace(value=None, keep=None, p=0.0))
    return logits, pooled


def _attend_by_distance(call: DisentangledCall) -> Tensor | None:
    """Return outputs [n, q, H, v] of positions that are distances alone; None for any others."""
    tables = [table for table in (call.key_table, call.query_table) if table is not None]
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    is_plain = call.has_content and call.no_position is None and not is_traced
    if call.value is None or call.positions is None or not is_plain:
        return None
    rows = DistanceRows.of(call.positions, tables[0].shape[2])
    if rows is None:
        return None
    own = slice(call.query.shape[2] - call.value.shape[2], None)  # heads that have values
    key_table, query_table, base = call.key_table, call.query_table, call.base
    query_rows = rows.rows.flip(0) if call.transposes else rows.rows
    return attend_by_position(
        call.query[:, :, own],
        call.key[:, :, own],
        call.value,
        None if key_table is None else key_table.squeeze(0)[own],
        query_table=None if query_table is None else query_table.squeeze(0)[own],
        key_table_rows=None if key_table is None else rows.rows,
        query_table_rows=None if query_table is None else query_rows,
        zero_row=rows.zero,
        attn_bias=base if base is None or base.shape[1] == 1 else base[:, own],
        keep=call.keep,
        p=call.p,
        scale=call.scale,
    )


def _broadcasts(
    x: Tensor, full: tuple[int, ...], may_be_one: tuple[int, ...] | None = None
) -> bool:
    """Return whether a tensor with all axes of `full` has 1 in the place of some of its extents."""
    may_be_one = (1,) * len(full) if may_be_one is None else may_be_one
    return x.dim() == len(full) and all(
        size == expected or (bool(may) and size == 1)
        for size, expected, may in zip(x.shape, full, may_be_one, strict=True)
    )
