"""Patterns over a sequence of N tokens, as bool tensors [N, N] where True keeps a key."""

from __future__ import annotations

import torch
from torch import Tensor


def local_1d_pattern(attn_size: int, window_size: int) -> Tensor:
    """Let token i see tokens i - h to i + h, for a window of 2 h + 1.

    Raises: ValueError if `window_size` is even.
    Source: Beltagy et al. 2020, arXiv:2004.05150.
    """
    return dilated_1d_pattern(attn_size, window_size, dilation=1)


def dilated_1d_pattern(attn_size: int, window_size: int, dilation: int = 2) -> Tensor:
    """Let token i see tokens i + n dilation, for n of -h to h and a window of 2 h + 1.

    Raises: ValueError if `window_size` is even, or `dilation` less than 1.
    Source: Beltagy et al. 2020, arXiv:2004.05150, section 3.1.
    """
    check_window(window_size, dilation)
    tokens = torch.arange(attn_size)
    apart = (tokens[:, None] - tokens).abs()
    return (apart <= window_size // 2 * dilation) & (apart % dilation == 0)


def causal_1d_pattern(attn_size: int) -> Tensor:
    """Let token i see tokens j <= i."""
    return torch.ones(attn_size, attn_size, dtype=torch.bool).tril()


def global_token_pattern(attention_query_mask: Tensor) -> Tensor:
    """Let global tokens see all, and all see them; other tokens do not even see themselves.

    attention_query_mask: bool [N], True is a global token.
    Raises: ValueError if it is another tensor.
    Source: Zaheer et al. 2020, arXiv:2007.14062, section 2.
    """
    check_token_mask(attention_query_mask)
    return attention_query_mask[:, None] | attention_query_mask


def check_window(window_size: int, dilation: int = 1) -> None:
    """Check the arguments of `dilated_1d_pattern`."""
    if window_size % 2 != 1 or window_size < 1 or dilation < 1:
        raise ValueError(
            "patterns: expected an odd window_size, which counts the token itself, and dilation "
            f"of 1 or more, got {window_size} and {dilation}"
        )


def check_token_mask(attention_query_mask: Tensor) -> None:
    """Check the argument of `global_token_pattern`."""
    if attention_query_mask.dim() != 1 or attention_query_mask.dtype != torch.bool:
        raise ValueError(
            "patterns: expected attention_query_mask, a bool tensor [N], got "
            f"{attention_query_mask.dtype} {list(attention_query_mask.shape)}"
        )
