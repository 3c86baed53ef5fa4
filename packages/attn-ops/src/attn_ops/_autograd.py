"""Attention on canonical inputs, and its gradient: an autograd function around the operators.

It stands outside the operators because torch then skips its slow path for gradients made in
Python. `torch.ops.attn_ops.attention` and `attention_with_lse` get the same gradient here.
"""

from operator import itemgetter
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import forward_ad

from attn_ops import _torch_ops, autocast
from attn_ops._torch_ops import DIFFERENTIABLE
from attn_ops.mask import MaskSpec
from attn_ops.operands import with_unit_stride

_NUM_ARGUMENTS = len(_torch_ops.ARGUMENT_NAMES)
_TENSORS = _torch_ops.TENSORS
_NUMBERS = tuple(place for place in range(_NUM_ARGUMENTS) if place not in _TENSORS)
_take_tensors = itemgetter(*_TENSORS)
_take_numbers = itemgetter(*_NUMBERS)
_take_differentiable = itemgetter(*DIFFERENTIABLE)
_in_order = itemgetter(*((*_TENSORS, *_NUMBERS).index(place) for place in range(_NUM_ARGUMENTS)))
"""The arguments of an operator from its tensors followed by its numbers."""

_DEFAULTS: Final = {
    argument.name: argument.default_value
    for argument in _torch_ops.public_attention._schema.arguments[3:_NUM_ARGUMENTS]  # noqa: SLF001  no public way
}
"""What the public operators take after query, key and value, and what stands for its absence."""

# Of torch's own kernels, those of the CPU have neither of these derivatives.
_INSTEAD: Final = (
    "call torch.nn.functional.scaled_dot_product_attention under "
    "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
)


def refusal_of_forward_mode(who: str, instead: str) -> str:
    """Return what to say of a tangent; `instead` is what to do."""
    return (
        f"{who}: expected at most a derivative in reverse mode, got one in forward mode (jvp, "
        f"jacfwd, hessian, dual tensors), which has no operator; {instead}"
    )


def refusal_of_second_derivative(who: str, instead: str) -> str:
    """Return what to say of the gradient of a gradient; `instead` is what to do."""
    return (
        f"{who}: expected at most one derivative, got a request for a second, which has no "
        f"operator; {instead}"
    )


class Attention(torch.autograd.Function):
    """Compute (out, lse), differentiable once in query, key, value, bias, slopes, table and sink.

    Its inputs are `_torch_ops.arguments` and the dtype of the output.
    """

    generate_vmap_rule = True

    @classmethod
    def apply(cls, *inputs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Apply, without torch's inspection of signature and wrappers where none can matter.

        It would take longer than all the rest.
        """
        if torch._C._are_functorch_transforms_active():  # noqa: SLF001  torch offers no public way
            return super().apply(*inputs)
        plain = super(torch.autograd.Function, cls)
        return plain.apply(*inputs)  # pyright: ignore[reportAttributeAccessIssue]

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401  tensors and numbers
        """Run the forward operator."""
        return _torch_ops.attention_forward(*inputs)

    @staticmethod
    def setup_context(
        ctx: Any,  # noqa: ANN401  torch's own annotation
        inputs: tuple[Any, ...],
        output: tuple[Tensor, Tensor],
    ) -> None:
        """Keep what the backward recomputes the probabilities from."""
        ctx.save_for_backward(*_take_tensors(inputs), *output)
        ctx.numbers = _take_numbers(inputs)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of the inputs that want one."""
        grad_out, grad_lse = grad_outputs
        *tensors, out, lse = ctx.saved_tensors
        arguments = _in_order((*tensors, *ctx.numbers))
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        needed = _take_differentiable(ctx.needs_input_grad)
        # Grad mode is on only if someone means to differentiate again.
        run = AttentionGradient.apply if torch.is_grad_enabled() else _run_backward
        found = iter(run(*arguments, out, lse, grad_out, grad_lse, *needed))
        return tuple(next(found) if need else None for need in ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> None:  # noqa: ANN401
        """Refuse.

        Raises: NotImplementedError always.
        """
        raise NotImplementedError(refusal_of_forward_mode("memory_efficient_attention", _INSTEAD))


class AttentionGradient(torch.autograd.Function):
    """The backward operator under autograd, to refuse a second derivative instead of losing it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
        """Run the backward operator."""
        return tuple(_run_backward(*inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> None:  # noqa: ANN401
        """Refuse.

        Raises: NotImplementedError always.
        """
        raise NotImplementedError(
            refusal_of_second_derivative("memory_efficient_attention", _INSTEAD)
        )


def _run_backward(*inputs: Any) -> list[Tensor]:  # noqa: ANN401
    """Run the backward operator on its arguments in the order of the schema."""
    arguments = inputs[:_NUM_ARGUMENTS]
    out, lse, grad_out, grad_lse, *needed = inputs[_NUM_ARGUMENTS:]
    grad_out = with_unit_stride(grad_out)  # that of `out.sum()` repeats on every axis
    return _torch_ops.attention_backward(*arguments, out, lse, grad_out, grad_lse, *needed)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: MaskSpec,
    scale: float | None,
    output_dtype: torch.dtype | None,
) -> Tensor:
    """Return the attention of canonical inputs, recorded by autograd where it is wanted."""
    arguments = _torch_ops.arguments(query, key, value, mask, scale)
    if _needs_dispatcher(query):
        return _dispatch(_torch_ops.public_attention, arguments, output_dtype)
    return _attend(arguments, output_dtype)


def attend_with_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: MaskSpec,
    scale: float | None,
    output_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Return the attention of canonical inputs and its LSE [B, Hq, Mq], both differentiable."""
    arguments = _torch_ops.arguments(query, key, value, mask, scale)
    if _needs_dispatcher(query):
        return _dispatch(_torch_ops.public_attention_with_lse, arguments, output_dtype)
    return _attend_with_lse(arguments, output_dtype)


def gradients(
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: MaskSpec,
    scale: float | None,
    *,
    grad_lse: Tensor | None = None,
    needed: tuple[bool, ...] = (True, True, True, False),
) -> tuple[Tensor | None, ...]:
    """Return the gradients of query, key, value, bias, slopes, table and sink; autograd sees none.

    One entry for each of `needed`, which may stop early; None where it is False.
    """
    arguments = _torch_ops.arguments(query, key, value, mask, scale)
    all_needed = (*needed, *[False] * (len(DIFFERENTIABLE) - len(needed)))
    with torch.no_grad():
        found = iter(_run_backward(*arguments, out, lse, grad_out, grad_lse, *all_needed))
    return tuple(next(found) if need else None for need in needed)


def is_differentiated(*tensors: Tensor | None) -> bool:
    """Return whether autograd must see the call: to record it, or to refuse forward mode."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return forward_ad._current_level >= 0  # noqa: SLF001  torch offers no public way


def _needs_dispatcher(query: Tensor) -> bool:
    """Return whether torch must see one operator, which takes longer than our own function.

    Dynamo refuses an autograd function that gets one tensor twice, and knows what to do with an
    operator; autocast casts the tensors of the mask too.
    """
    return torch.compiler.is_compiling() or autocast.is_enabled(query)


def _dispatch(operator: Any, arguments: tuple[Any, ...], output_dtype: torch.dtype | None) -> Any:  # noqa: ANN401
    mask = dict(zip(_DEFAULTS, arguments[3:], strict=True))
    return operator(*arguments[:3], **mask, output_dtype=output_dtype)


def _attend(arguments: tuple[Any, ...], output_dtype: torch.dtype | None) -> Tensor:
    if is_differentiated(*_take_differentiable(arguments)):
        out, _lse = Attention.apply(*arguments, output_dtype)
        return out
    return _torch_ops.attention(*arguments, output_dtype)


def _attend_with_lse(
    arguments: tuple[Any, ...], output_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    if is_differentiated(*_take_differentiable(arguments)):
        return Attention.apply(*arguments, output_dtype)
    return _torch_ops.attention_forward(*arguments, output_dtype)


def _register(name: str, run: Any) -> None:  # noqa: ANN401
    """Make `run` the autograd rule of a public operator."""

    def rule(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *mask: Any,  # noqa: ANN401
        output_dtype: torch.dtype | None = None,
        **named_mask: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        given = dict(zip(_DEFAULTS, mask, strict=False)) | named_mask
        return run((query, key, value, *(_DEFAULTS | given).values()), output_dtype)

    _torch_ops.registry.impl(name, rule, "Autograd")


_register("attention", _attend)
_register("attention_with_lse", _attend_with_lse)
