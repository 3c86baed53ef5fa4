"""`torch.ops.attn_ops.attention_by_position`: its fake kernels and its gradient.

It takes what `torch.ops.attn_ops.attention` takes, and then the features and tables of
`attn_positions` in `attn/mask.h`; it returns the output and the LSE.
"""

from typing import Any, Final

import torch
from torch import Tensor

from attn_ops._torch_ops import refuse_other_devices, registry

_forward: Final = torch.ops.attn_ops.attention_by_position.default
_backward: Final = torch.ops.attn_ops._attention_by_position_backward.default  # noqa: SLF001  ours
_ARGUMENTS: Final = _forward._schema.arguments  # noqa: SLF001  torch offers no public way
_TENSORS: Final = tuple(
    place for place, argument in enumerate(_ARGUMENTS) if "Tensor" in str(argument.type)
)
_DIFFERENTIABLE: Final = tuple(
    [argument.name for argument in _ARGUMENTS].index(name)
    for name in (
        *("query", "key", "value", "attn_bias", "slopes", "table", "sink"),
        *("position_query", "key_table", "position_key", "query_table"),
    )
)
_NEEDS: Final = tuple(
    argument.name
    for argument in _backward._schema.arguments  # noqa: SLF001
    if argument.name.startswith("need_")
)


@torch.library.register_fake("attn_ops::attention_by_position")
def _fake_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *others: Any,  # noqa: ANN401
    **named: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor]:
    refuse_other_devices(query, key, value, *others, *named.values())
    batch, num_queries, heads, _ = query.shape
    lse_dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    out = query.new_empty((batch, num_queries, heads, value.shape[3]))
    return out, query.new_empty((batch, heads, num_queries), dtype=lse_dtype)


@torch.library.register_fake("attn_ops::_attention_by_position_backward")
def _fake_backward(*inputs: Any, **named: Any) -> list[Tensor]:  # noqa: ANN401
    refuse_other_devices(*inputs, *named.values())
    return [
        inputs[place].new_empty(inputs[place].shape)
        for place, need in zip(_DIFFERENTIABLE, _NEEDS, strict=True)
        if named[need]
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401  torch's own signature
    ctx.save_for_backward(*(inputs[place] for place in _TENSORS), *output)
    ctx.numbers = [x for place, x in enumerate(inputs) if place not in _TENSORS]
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any,  # noqa: ANN401
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
) -> tuple[Tensor | None, ...]:
    *tensors, out, lse = ctx.saved_tensors
    of_tensors, of_numbers = iter(tensors), iter(ctx.numbers)
    arguments = [
        next(of_tensors) if place in _TENSORS else next(of_numbers)
        for place in range(len(_ARGUMENTS))
    ]
    # Kernels read unit strides, and `out.sum()` sends a gradient that repeats on every axis.
    grads = {
        "out": out,
        "lse": lse,
        "grad_out": torch.zeros_like(out) if grad_out is None else grad_out.contiguous(),
        "grad_lse": None if grad_lse is None else grad_lse.contiguous(),
    }
    # Torch leaves out the last arguments where they are the defaults.
    needs = dict(enumerate(ctx.needs_input_grad))
    needed = [needs.get(place, False) for place in _DIFFERENTIABLE]
    found = _backward(*arguments, **grads, **dict(zip(_NEEDS, needed, strict=True)))
    wanted = [place for place, need in zip(_DIFFERENTIABLE, needed, strict=True) if need]
    by_place = dict(zip(wanted, found, strict=True))
    return tuple(by_place.get(place) for place in needs)


torch.library.register_autograd(
    "attn_ops::attention_by_position", _differentiate, setup_context=_save, lib=registry
)
