"""Reads what a mechanism is called with: layouts, masks and key padding, as one set of views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attn_modules.attention_mask import AttentionMask
from attn_ops import memory_efficient_attention
from attn_ops.operands import with_unit_stride

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attn_modules.attention import Attention
    from attn_ops import AttentionBias


@dataclass(frozen=True)
class Inputs:
    """One call in the layout of attn_ops, which is a view of what the caller gave.

    Where heads are folded into the batch, and no mask tells them apart, H is 1 and B is B * H.
    """

    q: Tensor
    """[B, Mq, H, K]"""
    k: Tensor
    """[B, Mkv, H, K]"""
    v: Tensor
    """[B, Mkv, H, Kv]"""
    mask: Tensor | None
    """[B or 1, H or 1, Mq or 1, Mkv or 1]: bool, True keeps a key; or added to the scores."""
    keep: Tensor | None
    """bool [B or 1, H or 1, 1, Mkv]: False is padding."""
    is_folded: bool
    """The caller's layout is [B * H, M, K]."""

    def bias(self) -> Tensor | None:
        """Return `mask` and `keep` as one mask, or None if there is neither."""
        if self.keep is None or self.mask is None:
            return self.keep if self.mask is None else self.mask
        if self.mask.dtype == torch.bool:
            return self.mask & self.keep
        return self.mask.masked_fill(~self.keep, -torch.inf)

    def kept_rows(self) -> Tensor | None:
        """Return `keep` beside the rows of k and v: bool [B or 1, Mkv, H or 1, 1], or None."""
        return None if self.keep is None else self.keep.permute(0, 3, 1, 2)

    def restore(self, out: Tensor) -> Tensor:
        """Return a result [B, Mq, H, Kv] in the caller's layout."""
        by_head = out.transpose(1, 2)
        return by_head.flatten(0, 1) if self.is_folded else by_head


def read_inputs(
    attention: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    att_mask: Tensor | AttentionMask | None = None,
    key_padding_mask: Tensor | None = None,
) -> Inputs:
    """Check a call of `attention` and return its views; see `Attention.forward` for the shapes.

    Raises: ValueError if shapes do not fit; NotImplementedError if a mask is given to a mechanism
    whose flags say that it takes none.
    """
    who, is_folded = type(attention).__name__, q.dim() == 3
    _check_flags(attention, att_mask, key_padding_mask)
    _check_operands(who, q, k, v)
    if attention.requires_same_k_q_dimensions and q.shape[-2] != k.shape[-2]:
        raise ValueError(
            f"{who}: expected as many keys as queries, got {k.shape[-2]} keys and {q.shape[-2]} "
            "queries"
        )
    mask = None if att_mask is None else _four_axes(who, att_mask)
    padding = None if key_padding_mask is None else _kept_keys(who, key_padding_mask)
    batch, heads = _batch_and_heads(q, mask, padding)
    extents = (batch, heads, q.shape[-2], k.shape[-2])
    if mask is not None and att_mask is not None:
        mask = _fit(who, "att_mask", mask, extents, att_mask.shape)
        if mask.dtype not in (torch.bool, torch.float32, q.dtype):
            mask = mask.to(q.dtype)
    if padding is not None and key_padding_mask is not None:
        padding = _fit_padding(who, padding, extents, key_padding_mask.shape)
    q, k, v = (_view(x, batch, heads) for x in (q, k, v))
    return Inputs(q, k, v, mask, padding, is_folded)


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, pattern: AttentionBias | None, bias: Tensor | None, p: float
) -> Tensor:
    """Compute exact attention over the keys that both `pattern` and `bias` keep.

    Shapes: q [B, Mq, H, K]; k [B, Mkv, H, K]; v [B, Mkv, H, Kv]; bias as `Inputs.bias` returns it.
    """
    if pattern is not None and bias is not None:
        return memory_efficient_attention(q, k, v, pattern.add_bias(bias), p)
    return memory_efficient_attention(q, k, v, bias if pattern is None else pattern, p)


def _check_flags(attention: Attention, att_mask: object, key_padding_mask: object) -> None:
    for name, mask, is_supported in (
        ("att_mask", att_mask, attention.supports_attention_mask),
        ("key_padding_mask", key_padding_mask, attention.supports_key_padding_mask),
    ):
        if mask is not None and not is_supported:
            raise NotImplementedError(
                f"{type(attention).__name__}: expected no {name}, which this mechanism cannot "
                "honour; scaled_dot_product takes any mask"
            )


def _check_operands(who: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    layout = "[B, H, M, K]" if q.dim() == 4 else "[B * H, M, K]"
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not x.is_floating_point():
            raise ValueError(f"{who}: expected floating-point q, k and v, got {name} {x.dtype}")
    if not q.dtype == k.dtype == v.dtype and not torch.is_autocast_enabled(q.device.type):
        raise ValueError(
            f"{who}: expected q, k and v of one dtype, got {q.dtype}, {k.dtype} and {v.dtype}"
        )
    batches = (q.shape[:-2], k.shape[:-2], v.shape[:-2])
    fits = q.dim() in (3, 4) and batches[0] == batches[1] == batches[2]
    if not fits or k.shape[-2] != v.shape[-2] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"{who}: expected q, k and v {layout} with one B and H, as many keys as values, and "
            f"queries as wide as keys, got q {list(q.shape)}, k {list(k.shape)}, v "
            f"{list(v.shape)}"
        )


def _four_axes(who: str, att_mask: Tensor | AttentionMask) -> Tensor:
    """Return an attention mask as [n, H or 1, Mq, Mkv], where n is B, B * H or 1."""
    mask = att_mask.values if isinstance(att_mask, AttentionMask) else att_mask
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"{who}: expected att_mask, a tensor or an AttentionMask, got a "
            f"{type(mask).__name__}; attn_ops.memory_efficient_attention takes the masks of "
            "attn_ops, and blocksparse a layout, which attn_modules.patterns.mask_to_layout makes "
            "of a BlockSparseMask"
        )
    if mask.dim() not in (2, 3, 4) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise ValueError(
            f"{who}: expected att_mask, bool or floating-point, [Mq, Mkv], [B, Mq, Mkv], "
            f"[B * H, Mq, Mkv] or [B, H, Mq, Mkv], got {mask.dtype} {list(mask.shape)}"
        )
    if mask.dim() == 4:
        return mask
    return mask[None, None] if mask.dim() == 2 else mask.unsqueeze(1)


def refuse_mask(who: str, att_mask: object, landmarks: int, q: Tensor, k: Tensor) -> None:
    """Refuse a mask where landmarks approximate attention, which is so beyond their number.

    Raises: NotImplementedError if there is a mask.
    """
    if att_mask is not None:
        raise NotImplementedError(
            f"{who}: expected no att_mask, or up to num_landmarks={landmarks} queries or keys, "
            f"where attention is exact, got a mask for {q.shape[-2]} queries and {k.shape[-2]} "
            "keys; scaled_dot_product takes any mask"
        )


def kept_by_any_head(who: str, key_padding_mask: Tensor, rows: Tensor, heads: int) -> Tensor:
    """Return which rows [B, Mkv, …] any of so many heads keeps: bool [B or 1, Mkv].

    Raises: ValueError if the mask does not fit.
    """
    extents = (rows.shape[0], heads, 1, rows.shape[1])
    keep = _fit_padding(who, _kept_keys(who, key_padding_mask), extents, key_padding_mask.shape)
    return keep.any(1).squeeze(1)


def _kept_keys(who: str, key_padding_mask: Tensor) -> Tensor:
    """Return a key padding mask as bool [n, 1, 1, Mkv], where n is B, B * H or 1."""
    _check_is_tensor(who, key_padding_mask)
    mask = key_padding_mask.squeeze(1) if key_padding_mask.dim() == 3 else key_padding_mask
    if mask.dim() != 2 or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise ValueError(
            f"{who}: expected key_padding_mask, bool or floating-point, [B, Mkv] or [B * H, Mkv], "
            f"got {mask.dtype} {list(key_padding_mask.shape)}; of a mask of ones and zeros, pass "
            "mask.bool()"
        )
    return as_keep(who, mask)[:, None, None]


def as_keep(who: str, key_padding_mask: Tensor) -> Tensor:
    """Return a key padding mask as bool, of the same shape.

    Raises: TypeError if it is no tensor; ValueError if it is of integers, or additive and holds
    other numbers than 0, -inf and the lowest of its dtype; on the CPU alone, outside graphs, for
    looking at values makes others wait.
    """
    mask = key_padding_mask
    _check_is_tensor(who, mask)
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point():
        raise ValueError(
            f"{who}: expected key_padding_mask, bool or floating-point, got {mask.dtype}; of a "
            "mask of ones and zeros, pass mask.bool()"
        )
    is_padding = mask <= torch.finfo(mask.dtype).min / 2
    is_traced = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    if not is_traced and not torch.compiler.is_compiling() and mask.device.type == "cpu":
        others = mask[~(is_padding | (mask == 0))]
        if others.numel() > 0:
            raise ValueError(
                f"{who}: expected an additive key_padding_mask of 0 to keep and -inf to pad, got "
                f"{others[0].item():g} in it; of a mask of ones and zeros, pass mask.bool()"
            )
    return ~is_padding


def _check_is_tensor(who: str, key_padding_mask: object) -> None:
    if not isinstance(key_padding_mask, Tensor):
        raise TypeError(
            f"{who}: expected key_padding_mask, a tensor [B, Mkv], got a "
            f"{type(key_padding_mask).__name__}"
        )


def _batch_and_heads(q: Tensor, *masks: Tensor | None) -> tuple[int, int]:
    """Return B and H; where heads are folded, the masks tell them, else B is B * H and H is 1."""
    if q.dim() == 4:
        return q.shape[0], q.shape[1]
    folded = batch = q.shape[0]
    for mask in masks:
        if mask is None:
            continue
        of_mask, heads_of_mask = mask.shape[:2]
        if heads_of_mask > 1 and folded % heads_of_mask == 0:
            return folded // heads_of_mask, heads_of_mask
        if 1 < of_mask < batch and folded % of_mask == 0:
            batch = of_mask
    return batch, folded // batch if batch > 0 else 1


def _fit(
    who: str, name: str, mask: Tensor, extents: tuple[int, int, int, int], given: Sequence[int]
) -> Tensor:
    """Crop a mask to the call, and view one of folded heads by batch element and head.

    given: the shape that the caller knows, for what is said if it does not fit.
    """
    batch, heads, queries, keys = extents
    if mask.shape[:2] == (batch * heads, 1) and heads > 1:
        mask = mask.unflatten(0, (batch, heads)).squeeze(2)
    # An extent of 1 stands for any number, and for none too.
    mask = mask[..., : max(queries, 1), : max(keys, 1)]
    for extent, wanted in zip(mask.shape, extents, strict=True):
        if extent not in (1, wanted):
            raise ValueError(
                f"{who}: expected {name} for B={batch}, H={heads}, {queries} queries and {keys} "
                f"keys, where any extent may be 1 and queries and keys more, got {list(given)}"
            )
    return mask


def _fit_padding(
    who: str, padding: Tensor, extents: tuple[int, int, int, int], given: Sequence[int]
) -> Tensor:
    """Return what `_kept_keys` returned as `Inputs.keep`."""
    fitted = _fit(who, "key_padding_mask", padding, extents, given)
    return fitted.expand(-1, -1, -1, extents[3])


def _view(x: Tensor, batch: int, heads: int) -> Tensor:
    """Return [B, H, M, K] or [B * H, M, K] as [B, M, H, K]."""
    by_head = x if x.dim() == 4 else x.unflatten(0, (batch, heads))
    return with_unit_stride(by_head.transpose(1, 2))
