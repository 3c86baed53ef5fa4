"""Loads `torch.ops.attn_ops`, and gives its operators their fake kernels: shapes without data.

Their gradients are registered by `_autograd`, their autocast rule by `autocast`, what they count
as by `_flops`; all of it at import, because torch keeps stale dispatch tables for an operator that
was compiled before.
"""

from typing import Any, Final

import torch
from torch import Tensor

from attn_ops import _library
from attn_ops.mask import MaskSpec
from attn_ops.operands import working_dtype


def _load() -> None:
    path = str(_library.torch_library())
    # Torch crashes, without a message, on the second copy of an operator library.
    if hasattr(torch.ops.attn_ops, "attention") and path not in torch.ops.loaded_libraries:
        raise ImportError(
            f"attn_ops: expected to load {path}, but another copy of libattn_torch.so is in this "
            "process already; import attn_ops before a program that loads its own copy"
        )
    torch.ops.load_library(path)


_load()

registry: Final = torch.library.Library("attn_ops", "IMPL")
"""Where the other modules register their rules; they last as long as it does."""

public_attention: Final = torch.ops.attn_ops.attention.default
"""The output; autograd and autocast see it. The mask's parts are named."""

public_attention_with_lse: Final = torch.ops.attn_ops.attention_with_lse.default
"""The output and the LSE, likewise."""

unmasked_attention: Final = torch.ops.attn_ops._unmasked_attention.default  # noqa: SLF001  ours
"""The output for canonical inputs and no mask, the shortest call; autograd does not record it."""

attention: Final = torch.ops.attn_ops._attention.default  # noqa: SLF001
"""The output for what `arguments` returns; autograd does not record it."""

attention_forward: Final = torch.ops.attn_ops._attention_forward.default  # noqa: SLF001
"""The output and the LSE, likewise."""

attention_backward: Final = torch.ops.attn_ops._attention_backward.default  # noqa: SLF001
"""The gradients of those of `DIFFERENTIABLE` that are needed, without gaps."""

ARGUMENT_NAMES: Final = tuple(
    argument.name
    for argument in attention._schema.arguments  # noqa: SLF001  torch offers no public way
    if argument.name != "output_dtype"
)
"""What every operator begins with."""

TENSORS: Final = tuple(
    place
    for place, argument in enumerate(attention._schema.arguments)  # noqa: SLF001
    if "Tensor" in str(argument.type)
)
"""The places among them of tensors."""

DIFFERENTIABLE: Final = tuple(
    ARGUMENT_NAMES.index(name)
    for name in ("query", "key", "value", "bias", "slopes", "table", "sink")
)
"""The places among the arguments that have a gradient."""

_NO_SEQUENCES = (None, None, None, 0, 0)
_NO_PAGES = (None, 0)
_NO_BLOCKS = (None, None, 0)


def arguments(
    query: Tensor, key: Tensor, value: Tensor, mask: MaskSpec, scale: float | None
) -> tuple[Any, ...]:
    """Return what every operator begins with, in the order of their schemas."""
    band, dropout, relative = mask.band, mask.dropout, mask.relative
    sequences, pages, blocks = _NO_SEQUENCES, _NO_PAGES, _NO_BLOCKS
    if mask.sequences is not None:
        packed = mask.sequences
        sequences = (
            packed.q_start,
            packed.k_start,
            packed.k_len,
            packed.max_q_len,
            packed.max_k_len,
        )
    if mask.pages is not None:
        pages = (mask.pages.block_table, mask.pages.page_size)
    if mask.blocks is not None:
        blocks = (mask.blocks.offsets, mask.blocks.indices, mask.blocks.block_size)
    return (
        *(query, key, value, mask.bias, dropout.p, scale),
        *(band.left, band.right, band.anchor, dropout.seed),
        *sequences,
        *pages,
        *blocks,
        *(relative.slopes, relative.table, mask.sink, mask.softcap),
    )


def refuse_other_devices(*arguments: Any) -> None:  # noqa: ANN401  of which some are tensors
    """Raise where a real kernel would: a result on the meta device would hide the lack of one."""
    for x in arguments:
        if isinstance(x, Tensor) and x.device.type not in ("cpu", "cuda"):
            raise NotImplementedError(
                f"attn_ops: expected CPU or CUDA tensors, got one on {x.device}"
            )


@torch.library.register_fake("attn_ops::attention")
@torch.library.register_fake("attn_ops::_attention")
@torch.library.register_fake("attn_ops::_unmasked_attention")
def _fake_attention(*inputs: Any, **named: Any) -> Tensor:  # noqa: ANN401
    refuse_other_devices(*inputs, *named.values())
    query, _key, value = inputs[:3]
    last = inputs[len(ARGUMENT_NAMES) :]  # by position or, from the public operators, by name
    output_dtype = last[0] if last else named.get("output_dtype")
    return query.new_empty((*query.shape[:3], value.shape[3]), dtype=output_dtype or query.dtype)


@torch.library.register_fake("attn_ops::attention_with_lse")
@torch.library.register_fake("attn_ops::_attention_forward")
def _fake_forward(*inputs: Any, **named: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    query = inputs[0]
    batch, num_queries, heads, _ = query.shape
    lse_dtype = working_dtype(query.dtype)
    lse = query.new_empty((batch, heads, num_queries), dtype=lse_dtype)
    return _fake_attention(*inputs, **named), lse


@torch.library.register_fake("attn_ops::_attention_backward")
def _fake_backward(*inputs: Any) -> list[Tensor]:  # noqa: ANN401
    refuse_other_devices(*inputs)
    needed = inputs[-len(DIFFERENTIABLE) :]
    return [
        inputs[place].new_empty(inputs[place].shape)
        for place, need in zip(DIFFERENTIABLE, needed, strict=True)
        if need
    ]


def loop_under_vmap(operator: torch._ops.OpOverload) -> None:
    """Call `operator` once per sample: torch's own loop asks users to report it."""

    def rule(info: Any, in_dims: tuple[Any, ...], *inputs: Any, **options: Any) -> Any:  # noqa: ANN401
        samples = [
            operator(
                *(_sample(x, dim, index) for x, dim in zip(inputs, in_dims, strict=True)), **options
            )
            for index in range(info.batch_size)
        ]
        return _stack(samples)

    torch.library.register_vmap(operator, rule, lib=registry)


def _sample(x: Any, dim: Any, index: int) -> Any:  # noqa: ANN401  tensors and lists of them
    if isinstance(dim, (list, tuple)):
        return [_sample(*pair, index) for pair in zip(x, dim, strict=True)]
    return x if dim is None else x.select(dim, index)


def _stack(samples: list[Any]) -> tuple[Any, Any]:
    """Return what the samples' results are together, and where in each of them they lie."""
    if isinstance(samples[0], Tensor):
        return torch.stack(samples), 0
    form = type(samples[0])
    parts = [_stack(list(parts)) for parts in zip(*samples, strict=True)]
    return form(stacked for stacked, _ in parts), form(dims for _, dims in parts)


for _operator in (unmasked_attention, attention, attention_forward, attention_backward):
    loop_under_vmap(_operator)
