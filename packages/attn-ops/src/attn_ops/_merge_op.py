"""Merging canonical chunks, and its gradient: fake kernels and an autograd function.

Chunks are a list of tensors, or a list of one tensor that stacks them on a first axis of its own:
each output [B, M, H, Kv], each LSE [B, H, M].
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from attn_ops._autograd import is_differentiated, refusal_of_second_derivative
from attn_ops._torch_ops import loop_under_vmap, refuse_other_devices, registry
from attn_ops.operands import with_unit_stride, working_dtype

MOST_CHUNKS: Final = 1024
"""The most that one call merges, as `attn/merge.h` says."""

_INSTEAD: Final = "merge with torch.softmax of the stacked LSEs for that call"

_public_merge: Final = torch.ops.attn_ops.merge.default
_merge: Final = torch.ops.attn_ops._merge.default  # noqa: SLF001  ours
_merge_backward: Final = torch.ops.attn_ops._merge_backward.default  # noqa: SLF001


def merge(
    outs: Sequence[Tensor], lses: Sequence[Tensor], output_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """Return the merged (out, lse) of canonical chunks, recorded by autograd where it is wanted."""
    # Dynamo refuses an autograd function that gets one tensor twice, but traces an operator.
    run = _public_merge if torch.compiler.is_compiling() else _record_and_merge
    return run(outs, lses, output_dtype=output_dtype)


class Merge(torch.autograd.Function):
    """Compute (out, lse) of chunks, differentiable once in each output and each LSE.

    Its inputs are how many of the tensors are outputs, the dtype of the result, and the tensors.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        num_outs: int, output_dtype: torch.dtype | None, *chunks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the forward operator."""
        return _merge(chunks[:num_outs], chunks[num_outs:], output_dtype=output_dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401, ARG004  torch's own signature
        """Keep the chunks."""
        ctx.num_outs, _output_dtype, *chunks = inputs
        ctx.save_for_backward(*chunks)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of the chunks that want one."""
        chunks, needed = ctx.saved_tensors, ctx.needs_input_grad[2:]
        # Grad mode is on only if someone means to differentiate again.
        run = MergeGradient.apply if torch.is_grad_enabled() else MergeGradient.forward
        found = run(ctx.num_outs, needed, *chunks, *grad_outputs)
        gradients = (
            gradient if need else None for gradient, need in zip(found, needed, strict=True)
        )
        return None, None, *gradients


class MergeGradient(torch.autograd.Function):
    """The backward operator under autograd, to refuse a second derivative instead of losing it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        num_outs: int, needed: Sequence[bool], *tensors: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Run the backward operator on the chunks and the gradients of out and lse."""
        *chunks, grad_out, grad_lse = tensors
        need_outs, need_lses = any(needed[:num_outs]), any(needed[num_outs:])
        grad_outs, grad_lses = _merge_backward(
            chunks[:num_outs],
            chunks[num_outs:],
            with_unit_stride(grad_out),  # that of `out.sum()` repeats on every axis
            grad_lse,
            need_outs=need_outs,
            need_lses=need_lses,
        )
        num_lses = len(chunks) - num_outs
        return (*(grad_outs or [None] * num_outs), *(grad_lses or [None] * num_lses))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:  # noqa: ANN401
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> None:  # noqa: ANN401
        """Refuse.

        Raises: NotImplementedError always.
        """
        raise NotImplementedError(refusal_of_second_derivative("merge_attentions", _INSTEAD))


def _record_and_merge(
    chunk_outs: Sequence[Tensor],
    chunk_lses: Sequence[Tensor],
    *,
    output_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `attn_ops::merge`; it has this signature, and this function as its autograd rule."""
    if is_differentiated(*chunk_outs, *chunk_lses):
        return Merge.apply(len(chunk_outs), output_dtype, *chunk_outs, *chunk_lses)
    return _merge(chunk_outs, chunk_lses, output_dtype=output_dtype)


registry.impl("merge", _record_and_merge, "Autograd")


@torch.library.register_fake("attn_ops::merge")
@torch.library.register_fake("attn_ops::_merge")
def _fake_merge(
    chunk_outs: list[Tensor], chunk_lses: list[Tensor], *, output_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    refuse_other_devices(*chunk_outs, *chunk_lses)
    first = chunk_outs[0]
    batch, queries, heads, width = first.shape[-4:]
    lse_dtype = working_dtype(first.dtype)
    out = first.new_empty((batch, queries, heads, width), dtype=output_dtype or first.dtype)
    return out, first.new_empty((batch, heads, queries), dtype=lse_dtype)


@torch.library.register_fake("attn_ops::_merge_backward")
def _fake_merge_backward(
    chunk_outs: list[Tensor],
    chunk_lses: list[Tensor],
    *_gradients: Tensor | None,
    need_outs: bool,
    need_lses: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    return (
        [out.new_empty(out.shape) for out in chunk_outs] if need_outs else [],
        [lse.new_empty(lse.shape) for lse in chunk_lses] if need_lses else [],
    )


for _operator in (_merge, _merge_backward):
    loop_under_vmap(_operator)
