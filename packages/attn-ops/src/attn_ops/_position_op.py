"""`torch.ops.attn_ops.attention_by_position`: its fake kernels and its gradient.

It takes what `torch.ops.attn_ops.attention` takes, and then the features and tables of
`attn_positions` in `attn/mask.h`; it returns the output and the LSE.
"""

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import forward_ad

from attn_ops._autograd import (
    is_differentiated,
    refusal_of_forward_mode,
    refusal_of_second_derivative,
)
from attn_ops._torch_ops import refuse_other_devices, registry
from attn_ops.operands import with_unit_stride, working_dtype

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
_DEFAULTS: Final = {argument.name: argument.default_value for argument in _ARGUMENTS}
_OF_GRADIENT: Final = tuple(
    argument.name
    for argument in _backward._schema.arguments  # noqa: SLF001
    if argument.kwarg_only
)
"""What the backward takes besides: results, their gradients, and which gradients are needed."""

_NEEDS: Final = tuple(name for name in _OF_GRADIENT if name.startswith("need_"))
_INSTEAD: Final = "compute the scores with torch.einsum for that call"


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
    lse_dtype = working_dtype(query.dtype)
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


class PositionAttention(torch.autograd.Function):
    """Compute (out, lse), differentiable once in the tensors of `_DIFFERENTIABLE`."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401  tensors and numbers
        """Run the forward operator."""
        return _run_forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401  torch's own signature
        """Keep what the backward recomputes the probabilities from."""
        ctx.save_for_backward(*(inputs[place] for place in _TENSORS), *output)
        ctx.numbers = [x for place, x in enumerate(inputs) if place not in _TENSORS]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of the inputs that want one."""
        grad_out, grad_lse = grad_outputs
        *tensors, out, lse = ctx.saved_tensors
        of_tensors, of_numbers = iter(tensors), iter(ctx.numbers)
        arguments = [
            next(of_tensors) if place in _TENSORS else next(of_numbers)
            for place in range(len(_ARGUMENTS))
        ]
        # The gradient that `out.sum()` sends repeats on every axis.
        grad_out = torch.zeros_like(out) if grad_out is None else with_unit_stride(grad_out)
        needed = [ctx.needs_input_grad[place] for place in _DIFFERENTIABLE]
        # Grad mode is on only if someone means to differentiate again.
        run = PositionGradient.apply if torch.is_grad_enabled() else PositionGradient.forward
        found = iter(run(*arguments, out, lse, grad_out, grad_lse, *needed))
        return tuple(next(found) if need else None for need in ctx.needs_input_grad)


class PositionGradient(torch.autograd.Function):
    """The backward operator under autograd, to refuse a second derivative instead of losing it."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
        """Run the backward operator on its arguments, all in the order of its schema."""
        arguments, others = inputs[: len(_ARGUMENTS)], inputs[len(_ARGUMENTS) :]
        return tuple(_backward(*arguments, **dict(zip(_OF_GRADIENT, others, strict=True))))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> None:  # noqa: ANN401
        """Refuse.

        Raises: NotImplementedError always.
        """
        raise NotImplementedError(refusal_of_second_derivative("attend_by_position", _INSTEAD))


def _run_forward(*inputs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Run the operator's kernel; the operator itself would come back to its autograd rule."""
    with torch._C._AutoDispatchBelowAutograd():  # noqa: SLF001  torch offers no public way
        return _forward(*inputs)


def _record(*inputs: Any, **named: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Run the operator, which has this function as its autograd rule.

    Raises: NotImplementedError in forward mode, whose tangents would be lost.
    """
    if forward_ad._current_level >= 0:  # noqa: SLF001  torch offers no public way
        raise NotImplementedError(refusal_of_forward_mode("attend_by_position", _INSTEAD))
    given = dict(zip(_DEFAULTS, inputs, strict=False)) | named
    arguments = tuple((_DEFAULTS | given).values())
    is_wanted = is_differentiated(*(arguments[place] for place in _DIFFERENTIABLE))
    return (PositionAttention.apply if is_wanted else _run_forward)(*arguments)


registry.impl("attention_by_position", _record, "Autograd")
