"""What calling a module does: a whole sequence, a chunk, or one step."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Literal, get_args

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

CallMode = Literal["forward", "forward_steps", "forward_step"]
"""The method that calling a module runs."""

_MODES: Final = get_args(CallMode)
_of_context: ContextVar[CallMode | None] = ContextVar("attn_continual.call_mode", default=None)


@contextmanager
def call_mode(mode: CallMode) -> Iterator[None]:
    """Let every continual module called within run `mode`; contexts nest, and threads differ.

    Compiled and exported graphs have each module's own `call_mode`, for they outlive contexts.
    Raises: ValueError if `mode` names no method.

    >>> with call_mode("forward_step"):
    ...     current_call_mode("forward")
    'forward_step'
    """
    token = _of_context.set(checked_call_mode(mode))
    try:
        yield
    finally:
        _of_context.reset(token)


def current_call_mode(own: CallMode) -> CallMode:
    """Return the mode of the innermost context, or `own`, the module's, outside of any."""
    return own if torch.compiler.is_compiling() else _of_context.get() or own


def checked_call_mode(mode: object) -> CallMode:
    """Return `mode` if it is one.

    Raises: ValueError if it is not.
    """
    if mode not in _MODES:
        raise ValueError(f"call_mode: expected one of {', '.join(_MODES)}, got {mode!r}")
    return mode  # pyright: ignore[reportReturnType]
