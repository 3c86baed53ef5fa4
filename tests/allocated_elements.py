"""Watches how much memory each torch operation allocates, for tests of memory that may not grow."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class AllocatedElements(TorchDispatchMode):
    """Record the largest result that any operation allocates while this is entered.

    Views count nothing: an expanded one has many elements and no memory of its own. Backward
    passes on a CPU run in the thread that calls them, and are seen too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        """In elements."""
        self.operation = "nothing"
        """That made it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = {_place(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **kwargs)
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and _place(x) not in given:
                elements = x.untyped_storage().nbytes() // x.element_size()
                if elements > self.largest:
                    self.largest, self.operation = elements, f"{func} -> {list(x.shape)}"
        return out


def _place(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()
