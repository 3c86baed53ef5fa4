"""Calls with every part of a `MaskSpec`, and eager attention over what the spec means."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attn_ops.mask import (
    ANCHOR_BOTTOM_RIGHT,
    Band,
    Blocks,
    MaskSpec,
    Pages,
    Relative,
    Sequences,
)
from reference import mask_spec

SCALE = 0.3


@dataclass(frozen=True)
class Call:
    """What an operator gets, in float64."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: MaskSpec

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return those that are differentiable, in the order of the operators."""
        return self.query, self.key, self.value, *parameters(self.mask)


def parameters(mask: MaskSpec) -> tuple[Tensor, ...]:
    """Return the tensors of a mask that may have a gradient."""
    found = (mask.bias, mask.relative.slopes, mask.relative.table, mask.sink)
    return tuple(x for x in found if x is not None and x.is_floating_point())


def eager_attention(call: Call) -> tuple[Tensor, Tensor]:
    """Return (out, lse) by materialising the mask; a query that sees nothing gives 0 and -inf."""
    query, key, value, mask = call.query, call.key, call.value, call.mask
    groups = query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(groups, dim=2) for x in (key, value))
    batch, num_queries, heads, _ = query.shape
    scores = SCALE * torch.einsum("bihk,bjhk->bhij", query, key)
    if mask.softcap > 0.0:
        scores = mask.softcap * torch.tanh(scores / mask.softcap)
    scores = scores + mask_spec.materialize(mask, batch, heads, num_queries, key.shape[1])
    sink = torch.full((heads,), -torch.inf) if mask.sink is None else mask.sink
    column = sink.double()[:, None, None].expand(batch, heads, num_queries, 1)
    joined = torch.cat([scores, column], -1)
    is_empty = (joined == -torch.inf).all(-1, keepdim=True)
    lse = torch.logsumexp(joined.masked_fill(is_empty, 0.0), -1, keepdim=True)
    weights = torch.exp(scores.masked_fill(is_empty, -torch.inf) - lse)
    out = torch.einsum("bhij,bjhv->bihv", weights, value)
    return out, lse.masked_fill(is_empty, -torch.inf).squeeze(-1)


def make_call(name: str, *, requires_grad: bool = False) -> Call:
    """Return the same call of that name each time."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(
            shape, generator=generator, dtype=torch.float64, requires_grad=requires_grad
        )

    mask, num_keys = MASKS[name](random)
    query = random(1, 5, 4, 3)
    key, value = random(1, num_keys, 2, 3), random(1, num_keys, 2, 2)
    return Call(query, key, value, mask)


Random = Callable[..., Tensor]

CAUSAL = Band(right=0, anchor=ANCHOR_BOTTOM_RIGHT)


def _int32(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def _packed(_: Random) -> tuple[MaskSpec, int]:
    sequences = Sequences(_int32(0, 2, 2, 5), _int32(0, 3, 4, 7), None, 3, 3)
    return MaskSpec(CAUSAL, sequences=sequences), 7


def _gappy(random: Random) -> tuple[MaskSpec, int]:
    sequences = Sequences(_int32(0, 2, 4), _int32(1, 5), _int32(3, 3))
    return MaskSpec(bias=random(1, 1, 5, 9), sequences=sequences), 9


def _paged(_: Random) -> tuple[MaskSpec, int]:
    sequences = Sequences(_int32(0, 2, 5), _int32(0, 1), _int32(2, 5))
    pages = Pages(torch.tensor([[2, 0], [1, 3]], dtype=torch.int32), 3)
    return MaskSpec(CAUSAL, sequences=sequences, pages=pages), 12


def _blocks(_: Random) -> tuple[MaskSpec, int]:
    offsets = torch.tensor([[0, 1, 3, 3]], dtype=torch.int32)
    return MaskSpec(blocks=Blocks(offsets, _int32(1, 0, 3), 2)), 7


def _relative(random: Random) -> tuple[MaskSpec, int]:
    return MaskSpec(CAUSAL, relative=Relative(random(4), random(4, 5))), 7


def _sink(random: Random) -> tuple[MaskSpec, int]:
    return MaskSpec(CAUSAL, sink=random(4), softcap=0.7), 3


def _everything(random: Random) -> tuple[MaskSpec, int]:
    mask, num_keys = _paged(random)
    relative = Relative(random(4), random(4, 3))
    bias = random(1, 4, 1, num_keys)
    return replace(mask, bias=bias, relative=relative, sink=random(4), softcap=2.0), num_keys


MASKS: dict[str, Callable[[Random], tuple[MaskSpec, int]]] = {
    "packed": _packed,
    "gappy": _gappy,
    "paged": _paged,
    "blocks": _blocks,
    "relative": _relative,
    "sink": _sink,
    "everything": _everything,
}
"""How to make each mask from a source of random parameters, and for how many slots of keys."""
