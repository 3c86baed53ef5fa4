"""Linear biases of the distance as patterns; kernels take `AlibiBias`, which needs no matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attn_ops.fmha.attn_bias import AlibiBias

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor


def alibi_bias(num_heads: int, num_queries: int, num_keys: int | None = None) -> Tensor:
    """Return what ALiBi adds to the scores, float32 [num_heads, num_queries, num_keys].

    num_keys: default: `num_queries`. The last query and the last key have distance 0.
    Source: Press et al. 2022, arXiv:2108.12409; attention itself takes `AlibiBias.for_heads`.
    """
    keys = num_queries if num_keys is None else num_keys
    return AlibiBias.for_heads(num_heads).materialize((num_heads, num_queries, keys))


def alibi_pattern(threshold: float, mask_shape: Sequence[int] | torch.Size) -> Tensor:
    """Let queries see keys whose scores ALiBi lowers by less than `threshold`.

    mask_shape: H, Mq and Mkv; the result is bool [H, Mq, Mkv].
    """
    num_heads, num_queries, num_keys = mask_shape
    return alibi_bias(num_heads, num_queries, num_keys) > -threshold
