"""Joins attention masks and key padding masks for callers that fold heads into the batch."""

from __future__ import annotations

import torch
from torch import Tensor


def bool_mask_to_additive(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return what is added to the scores for a mask whose True entries keep a key.

    Raises: ValueError if `mask` is not bool.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"bool_mask_to_additive: expected a bool tensor, got {mask.dtype}")
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def reshape_key_padding_mask(key_padding_mask: Tensor, batched_dim: int) -> Tensor:
    """Return a mask [B, Mkv] as [B * H, 1, Mkv], head by head within a batch element.

    batched_dim: B * H.
    Raises: ValueError if the mask is not [B, Mkv], or B does not divide `batched_dim`.
    """
    if key_padding_mask.dim() != 2 or batched_dim % max(key_padding_mask.shape[0], 1) != 0:
        raise ValueError(
            "reshape_key_padding_mask: expected a mask [B, Mkv] whose B divides batched_dim, got "
            f"{list(key_padding_mask.shape)} and batched_dim={batched_dim}"
        )
    heads = batched_dim // key_padding_mask.shape[0]
    return key_padding_mask.repeat_interleave(heads, dim=0).unsqueeze(1)


def maybe_merge_masks(
    att_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    batch_size: int,
    src_len: int,
    num_heads: int,
    tgt_len: int | None = None,
) -> Tensor | None:
    """Return one mask [B * H, Mq, Mkv] that honours both, or what was given if one is None.

    att_mask: bool or additive, [Mq, Mkv], [B, Mq, Mkv] or [B * H, Mq, Mkv]. It comes back
        unchanged if there is no key padding mask.
    key_padding_mask: bool [B, Mkv], True keeps a key.
    src_len, tgt_len: Mkv and Mq; tgt_len defaults to src_len.
    Raises: ValueError if a mask has another shape or dtype; TypeError if att_mask is no tensor.
    """
    if key_padding_mask is None:
        return att_mask
    if key_padding_mask.dtype != torch.bool or key_padding_mask.shape != (batch_size, src_len):
        raise ValueError(
            f"maybe_merge_masks: expected key_padding_mask, bool [{batch_size}, {src_len}], got "
            f"{key_padding_mask.dtype} {list(key_padding_mask.shape)}"
        )
    queries = src_len if tgt_len is None else tgt_len
    folded = (batch_size * num_heads, queries, src_len)
    kept = reshape_key_padding_mask(key_padding_mask, batch_size * num_heads).expand(folded)
    if att_mask is None:
        return kept
    if not isinstance(att_mask, Tensor):
        raise TypeError(
            f"maybe_merge_masks: expected att_mask, a tensor, got a {type(att_mask).__name__}; "
            "pass an AttentionMask's values"
        )
    if att_mask.dtype != torch.bool and not att_mask.is_floating_point():
        raise ValueError(
            f"maybe_merge_masks: expected att_mask, bool or floating-point, got {att_mask.dtype}"
        )
    fits = att_mask.shape[-2:] == folded[1:] and att_mask.dim() in (2, 3)
    if not fits or (att_mask.dim() == 3 and att_mask.shape[0] not in (1, batch_size, folded[0])):
        raise ValueError(
            f"maybe_merge_masks: expected att_mask {list(folded[1:])}, with {batch_size} or "
            f"{folded[0]} in front or nothing, got {list(att_mask.shape)}"
        )
    if att_mask.dim() == 3 and att_mask.shape[0] == batch_size:
        att_mask = att_mask.repeat_interleave(num_heads, dim=0)
    if att_mask.dtype == torch.bool:
        return att_mask & kept
    return att_mask.masked_fill(~kept, -torch.inf)
