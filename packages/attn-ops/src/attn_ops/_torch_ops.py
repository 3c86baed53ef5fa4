"""Loads `torch.ops.attn_ops`, and gives its operators their fake kernels: shapes without data.

Their gradients are registered by `_autograd`, their autocast rule by `_autocast`; all of it at
import, because torch keeps stale dispatch tables for an operator that was compiled before.
"""

from typing import Any, Final

import torch
from torch import Tensor

from attn_ops import _library


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

attention: Final = torch.ops.attn_ops._attention.default  # noqa: SLF001  ours
"""The output alone, for canonical inputs; autograd does not record it."""

attention_forward: Final = torch.ops.attn_ops._attention_forward.default  # noqa: SLF001
"""The output and the LSE, likewise."""

attention_backward: Final = torch.ops.attn_ops._attention_backward.default  # noqa: SLF001
"""The gradients of query, key, value and bias; shape [0] for one that is not needed."""


def _refuse_other_devices(*tensors: Tensor) -> None:
    """Raise where a real kernel would: a result on the meta device would hide the lack of one."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            raise NotImplementedError(f"attn_ops: expected CPU tensors, got one on {tensor.device}")


@torch.library.register_fake("attn_ops::attention")
@torch.library.register_fake("attn_ops::_attention")
def _fake_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_mask: Any,  # noqa: ANN401  the mask changes no shape
    output_dtype: torch.dtype | None = None,
    **_named_mask: Any,  # noqa: ANN401
) -> Tensor:
    _refuse_other_devices(query, key, value)
    return query.new_empty((*query.shape[:3], value.shape[3]), dtype=output_dtype or query.dtype)


@torch.library.register_fake("attn_ops::_attention_forward")
def _fake_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_mask: Any,  # noqa: ANN401
    output_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    batch, num_queries, heads, _ = query.shape
    lse_dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    out = _fake_attention(query, key, value, output_dtype=output_dtype)
    return out, query.new_empty((batch, heads, num_queries), dtype=lse_dtype)


@torch.library.register_fake("attn_ops::_attention_backward")
def _fake_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    *_mask_and_saved: Any,  # noqa: ANN401
    need_query: bool,
    need_key: bool,
    need_value: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def gradient_of(like: Tensor, needed: bool) -> Tensor:
        return like.new_empty(like.shape if needed else (0,))

    return (
        gradient_of(query, need_query),
        gradient_of(key, need_key),
        gradient_of(value, need_value),
        gradient_of(query if bias is None else bias, need_bias),
    )
