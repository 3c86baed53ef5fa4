"""Attention on canonical inputs, and its gradient: an autograd function around the operators.

It stands outside the operators because torch then skips its slow path for gradients made in
Python. `torch.ops.attn_ops.attention` gets the same gradient here.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from attn_ops import _torch_ops
from attn_ops.mask import ANCHOR_TOP_LEFT, UNBOUNDED, MaskSpec


class Attention(torch.autograd.Function):
    """Compute (out, lse), differentiable once in query, key, value and bias.

    Its inputs are those of `attn_ops::_attention_forward`, in that order.
    """

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401  tensors and numbers
        """Run the forward operator."""
        *arguments, output_dtype = inputs
        return _torch_ops.attention_forward(*arguments, output_dtype=output_dtype)

    @staticmethod
    def setup_context(
        ctx: Any,  # noqa: ANN401  torch's own annotation
        inputs: tuple[Any, ...],
        output: tuple[Tensor, Tensor],
    ) -> None:
        """Keep what the backward recomputes the probabilities from."""
        query, key, value, bias, *numbers, dropout_seed, _output_dtype = inputs
        ctx.save_for_backward(query, key, value, bias, dropout_seed, *output)
        ctx.numbers = numbers
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of the inputs that want one."""
        grad_out, grad_lse = grad_outputs
        *tensors, dropout_seed, out, lse = ctx.saved_tensors
        grad_out = torch.zeros_like(out) if grad_out is None else _with_unit_stride(grad_out)
        grad_lse = None if grad_lse is None else grad_lse.contiguous()
        needed = ctx.needs_input_grad[:4]
        arguments = (*tensors, *ctx.numbers, dropout_seed, out, lse, grad_out, grad_lse, *needed)
        # Grad mode is on only if someone means to differentiate again.
        run = AttentionGradient.apply if torch.is_grad_enabled() else _gradients
        gradients = run(*arguments)
        wanted = [
            gradient if need else None for gradient, need in zip(gradients, needed, strict=True)
        ]
        return (*wanted, *[None] * 7)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> None:  # noqa: ANN401
        """Refuse.

        Raises: NotImplementedError always.
        """
        raise NotImplementedError(
            "memory_efficient_attention: expected at most a derivative in reverse mode, got one in "
            "forward mode (jvp, jacfwd, dual tensors), which has no operator; use "
            "torch.nn.functional.scaled_dot_product_attention for that call"
        )


# Torch inspects the signature at every call, which takes longer than all the rest of it; it takes
# this one as it is.
vars(Attention)["forward"].__func__.__signature__ = inspect.signature(Attention.forward)


class AttentionGradient(torch.autograd.Function):
    """The backward operator under autograd, to refuse a second derivative instead of losing it."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
        """Run the backward operator."""
        return _gradients(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> None:  # noqa: ANN401
        """Refuse.

        Raises: NotImplementedError always.
        """
        raise NotImplementedError(
            "memory_efficient_attention: expected at most one derivative, got a request for a "
            "second, which has no operator; use "
            "torch.nn.functional.scaled_dot_product_attention for that call"
        )


def _gradients(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: ANN401
    *arguments, need_query, need_key, need_value, need_bias = inputs
    return _torch_ops.attention_backward(
        *arguments,
        need_query=need_query,
        need_key=need_key,
        need_value=need_value,
        need_bias=need_bias,
    )


def _with_unit_stride(grad_out: Tensor) -> Tensor:
    """Return `grad_out` readable by kernels: `out.sum()` sends one that repeats on every axis."""
    return grad_out if grad_out.stride(-1) == 1 else grad_out.contiguous()


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: MaskSpec,
    scale: float | None,
    output_dtype: torch.dtype | None,
) -> Tensor:
    """Return the attention of canonical inputs, recorded by autograd where it is wanted."""
    band, dropout = mask.band, mask.dropout
    # Dynamo refuses an autograd function that gets one tensor twice, and knows what to do with an
    # operator. Called directly, the function costs less.
    run = torch.ops.attn_ops.attention.default if torch.compiler.is_compiling() else _attend
    return run(
        query,
        key,
        value,
        mask.bias,
        dropout.p,
        scale,
        band_left=band.left,
        band_right=band.right,
        band_anchor=band.anchor,
        dropout_seed=dropout.seed,
        output_dtype=output_dtype,
    )


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    band_left: int = UNBOUNDED,
    band_right: int = UNBOUNDED,
    band_anchor: int = ANCHOR_TOP_LEFT,
    dropout_seed: Tensor | None = None,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """Run `attn_ops::attention`; it has this signature, and this function as its autograd rule."""
    band = (band_left, band_right, band_anchor)
    arguments = (query, key, value, attn_bias, p, scale, *band, dropout_seed)
    if is_differentiated(query, key, value, attn_bias):
        out, _lse = Attention.apply(*arguments, output_dtype)
        return out
    return _torch_ops.attention(*arguments, output_dtype=output_dtype)


def is_differentiated(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
) -> bool:
    """Return whether autograd must see the call: to record it, or to refuse forward mode."""
    return (
        torch.is_grad_enabled()
        and (
            query.requires_grad
            or key.requires_grad
            or value.requires_grad
            or (bias is not None and bias.requires_grad)
        )
    ) or forward_ad._current_level >= 0  # noqa: SLF001  torch offers no public way


_torch_ops.registry.impl("attention", _attend, "Autograd")
