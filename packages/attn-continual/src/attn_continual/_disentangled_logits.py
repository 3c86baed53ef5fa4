"""Logits of content and of looked-up positions, a few queries of a few heads at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from attn_continual._distance_rows import table_rows
from attn_ops.operands import working_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOGITS_PER_THREAD = 1 << 18
"""Queries, heads and samples are taken together while they have no more logits for each thread."""


class DisentangledCall(NamedTuple):
    """What `disentangled_attention` takes."""

    query: Tensor
    """[n, q, h, d]"""
    key: Tensor
    """[n, k, h, d]"""
    value: Tensor | None
    """[n, k, H, v], of the last H heads; None: nothing is pooled."""
    key_table: Tensor | None
    """[coordinates, h, Z, d / coordinates]: positions as keys, for queries; None: no such term."""
    query_table: Tensor | None
    """Likewise: positions as queries, for keys."""
    head_bias: Tensor | None
    """[h], added."""
    base: Tensor | None
    """[n or 1, h or 1, q or 1, k or 1], added."""
    positions: Tensor | None
    """Integers [n or 1, q, k, coordinates]: what row of the tables a pair reads, from Z // 2."""
    no_position: Tensor | None
    """bool [n or 1, 1, q or 1, k or 1]: True leaves the terms of positions out."""
    keep: Tensor | None
    """bool [n or 1, H or 1, q or 1, k or 1]: True pools a key."""
    dropout_seed: Tensor | None
    scale: float
    """Of every term."""
    p: float
    """The probability of dropping a weight."""
    has_content: bool
    """Whether there is the term of query and key."""
    transposes: bool
    """Whether a key j reads row (j, i) for the query i; else (i, j)."""
    keeps_logits: bool
    """Whether logits are returned."""

    @property
    def num_coordinates(self) -> int:
        """How many coordinates the positions of pairs have; 0 without any."""
        return 0 if self.positions is None else self.positions.shape[3]

    @property
    def compute_dtype(self) -> torch.dtype:
        """That of logits while they are added up."""
        return working_dtype(self.query.dtype)

    @property
    def logits_dtype(self) -> torch.dtype:
        """That of the result."""
        dtype = self.query.dtype
        return dtype if self.base is None else torch.promote_types(dtype, self.base.dtype)


class Gradients(NamedTuple):
    """Sums of the gradients of the first of `DisentangledCall`, in the dtype of computing."""

    query: Tensor
    key: Tensor
    value: Tensor | None
    key_table: Tensor | None
    query_table: Tensor | None
    head_bias: Tensor | None
    base: Tensor | None


class Place(NamedTuple):
    """Which heads of which samples."""

    samples: slice
    heads: slice


class Heads(NamedTuple):
    """Some heads of some samples, by head and in the dtype of computing."""

    samples: slice
    heads: slice
    query: Tensor
    """[n, h, q, d], scaled"""
    key: Tensor
    """[n, h, k, d], scaled: for the terms of positions"""
    content: Tensor
    """[n, h, k, d], as it is"""
    of_keys: list[Tensor]
    """[n, h, k, Z] for each coordinate: every key with every position; empty if not wanted."""

    @classmethod
    def read(cls, call: DisentangledCall, at: Place, *, wants_logits: bool = True) -> Heads:
        """Return those of a place.

        wants_logits: whether `logits_of` will be asked for.
        """
        query, key = (
            x[at.samples, :, at.heads].to(call.compute_dtype).transpose(1, 2)
            for x in (call.query, call.key)
        )
        scaled, of_keys = key * call.scale, []
        if wants_logits and call.query_table is not None:
            table = call.query_table[:, at.heads].to(key.dtype)
            parts = zip(scaled.chunk(len(table), dim=-1), table, strict=True)
            of_keys = [part @ rows.mT for part, rows in parts]
        return cls(*at, query * call.scale, scaled, key, of_keys)


class Chunk(NamedTuple):
    """Some queries of some heads."""

    number: int
    queries: slice

    @property
    def size(self) -> int:
        """The number of queries."""
        return self.queries.stop - self.queries.start

    def part(self, x: Tensor, of: Heads) -> Tensor:
        """Return what [n or 1, h or 1, q or 1, k or 1] says of it."""
        samples, heads = (
            slice(None) if size == 1 else some
            for size, some in zip(x.shape[:2], (of.samples, of.heads), strict=True)
        )
        queries = slice(None) if x.shape[2] == 1 else self.queries
        return x[samples, heads, queries]


def heads_at_once(call: DisentangledCall) -> Iterator[Place]:
    """Yield all heads of all samples, as many at once as their logits allow.

    Whoever reads them lets go of those before: what belongs to two pieces does not fit beside.
    """
    samples, queries, heads, _ = call.query.shape
    at_once = max(_logits_at_once() // max(queries * call.key.shape[1], 1), 1)
    for sample in _slices(samples, max(at_once // max(heads, 1), 1)):
        for some in _slices(heads, min(at_once, max(heads, 1))):
            yield Place(sample, some)


def chunks(call: DisentangledCall, of: Heads, first_number: int) -> Iterator[Chunk]:
    """Yield all queries of some heads, as many at once as their logits allow."""
    count, heads, queries, _ = of.query.shape
    size = max(_logits_at_once() // max(count * heads * call.key.shape[1], 1), 1)
    for number, some in enumerate(_slices(queries, size), first_number):
        yield Chunk(number, some)


def _logits_at_once() -> int:
    return _LOGITS_PER_THREAD * torch.get_num_threads()


def _slices(total: int, size: int) -> list[slice]:
    return [slice(begin, min(begin + size, total)) for begin in range(0, total, size)]


class _Lookup(NamedTuple):
    """What the pairs of a chunk read along one coordinate; of no longer use than one is needed."""

    rows: Tensor
    """int64 [n, h, queries, k]: of the key table."""
    columns: Tensor
    """Likewise: of the query table."""

    @classmethod
    def of(cls, call: DisentangledCall, of: Heads, chunk: Chunk, c: int) -> _Lookup:
        """Return it for coordinate c."""
        table = call.query_table if call.key_table is None else call.key_table
        assert call.positions is not None  # noqa: S101  there is a coordinate
        assert table is not None  # noqa: S101  positions come with a term of theirs
        samples = slice(None) if call.positions.shape[0] == 1 else of.samples
        positions = call.positions[samples, :, :, c]
        shape = (*of.query.shape[:2], -1, -1)

        def read(pairs: Tensor) -> Tensor:
            return table_rows(pairs, table.shape[2]).unsqueeze(1).expand(shape)

        rows = columns = read(positions[:, chunk.queries])
        if call.transposes and call.query_table is not None:
            columns = read(positions[:, :, chunk.queries].mT)
        return cls(rows, columns)


def logits_of(call: DisentangledCall, of: Heads, chunk: Chunk) -> Tensor:
    """Return the logits of a chunk, [n, h, queries, k]."""
    query = of.query[:, :, chunk.queries]
    total = query.new_zeros(*query.shape[:3], of.key.shape[2])
    for c in range(call.num_coordinates):
        _add_logits_of_positions(total, call, of, chunk, c)
    if call.no_position is not None:
        total.masked_fill_(chunk.part(call.no_position, of), 0.0)
    if call.has_content:
        total += query @ of.content.mT
    if call.head_bias is not None:
        total += call.head_bias[of.heads, None, None]
    if call.base is not None:
        total += chunk.part(call.base, of)
    return total


def _add_logits_of_positions(
    total: Tensor, call: DisentangledCall, of: Heads, chunk: Chunk, c: int
) -> None:
    lookup = _Lookup.of(call, of, chunk, c)
    if call.key_table is not None:
        part, table = _term_of_queries(call.key_table, of, chunk, c)
        total += (part @ table.mT).gather(3, lookup.rows)
    if call.query_table is not None:
        total.mT.add_(of.of_keys[c].gather(3, lookup.columns.mT))


def _term_of_queries(key_table: Tensor, of: Heads, chunk: Chunk, c: int) -> tuple[Tensor, Tensor]:
    """Return queries [n, h, queries, w] and positions as keys [h, Z, w] along coordinate c."""
    part = of.query[:, :, chunk.queries].chunk(len(key_table), dim=-1)[c]
    return part, key_table[c, of.heads].to(part.dtype)


class HeadGradients:
    """Adds up what the gradients of some heads' logits make of the inputs."""

    def __init__(self, call: DisentangledCall, of: Heads, grads: Gradients) -> None:
        self._call, self._of, self._grads = call, of, grads
        self._query = grads.query[of.samples, :, of.heads].transpose(1, 2)
        self._key = grads.key[of.samples, :, of.heads].transpose(1, 2)
        self._of_keys: list[Tensor] = []
        if call.query_table is not None:
            shape = (*of.key.shape[:3], call.query_table.shape[2])
            self._of_keys = [of.key.new_zeros(shape) for _ in call.query_table]

    def add(self, chunk: Chunk, total: Tensor) -> None:
        """Add those of a chunk, [n, h, queries, k], which is overwritten."""
        call, of, grads = self._call, self._of, self._grads
        if grads.base is not None:
            part = chunk.part(grads.base, of)
            part += total.sum_to_size(part.shape)
        if grads.head_bias is not None:
            grads.head_bias[of.heads] += total.sum((0, 2, 3))
        by_query = self._query[:, :, chunk.queries]
        if call.has_content:
            by_query.add_(total @ of.content, alpha=call.scale)
            self._key += total.mT @ of.query[:, :, chunk.queries]
        if call.no_position is not None:
            total.masked_fill_(chunk.part(call.no_position, of), 0.0)
        for c in range(call.num_coordinates):
            self._add_of_positions(chunk, total, by_query, c)

    def _add_of_positions(self, chunk: Chunk, total: Tensor, by_query: Tensor, c: int) -> None:
        call, of, grads = self._call, self._of, self._grads
        lookup = _Lookup.of(call, of, chunk, c)
        if call.query_table is not None:
            self._of_keys[c].scatter_add_(3, lookup.columns.mT, total.mT)
        if call.key_table is None:
            return
        part, table = _term_of_queries(call.key_table, of, chunk, c)
        by_row = total.new_zeros(*part.shape[:3], table.shape[1])
        by_row.scatter_add_(3, lookup.rows, total)
        by_query.chunk(call.num_coordinates, dim=-1)[c].add_(by_row @ table, alpha=call.scale)
        if grads.key_table is not None:
            grads.key_table[c, of.heads] += (by_row.mT @ part).sum(0)

    def finish(self) -> None:
        """Add what is known only after all chunks."""
        query_table = self._call.query_table
        if query_table is None or self._grads.query_table is None:
            return
        count = len(query_table)
        parts = zip(self._of.key.chunk(count, -1), self._key.chunk(count, -1), strict=True)
        for c, (key, by_key) in enumerate(parts):
            by_row, table = self._of_keys[c], query_table[c, self._of.heads].to(key.dtype)
            by_key.add_(by_row @ table, alpha=self._call.scale)
            self._grads.query_table[c, self._of.heads] += (by_row.mT @ key).sum(0)
