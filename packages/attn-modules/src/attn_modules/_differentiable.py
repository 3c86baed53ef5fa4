"""Gradients of this package's operators, for autograd and for the transforms of torch.func."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


def differentiable(
    operator: torch._ops.OpOverload,
    backward: Callable[..., Any],
    save: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """Register the gradient of `operator`, and return what to call in its place.

    What torch lets operators register serves autograd and compilers, not torch.func.grad, for which
    an autograd function stands around the call.

    backward, save: what `torch.library.register_autograd` takes as `backward` and `setup_context`.
    """
    torch.library.register_autograd(operator, backward, setup_context=save)

    def forward(*inputs: Any) -> Any:  # noqa: ANN401  Dynamo takes functions alone
        return operator(*inputs)

    of_transforms = type(
        operator.name(),
        (torch.autograd.Function,),
        {
            "generate_vmap_rule": True,
            "forward": staticmethod(forward),
            "setup_context": staticmethod(save or _save_nothing),
            "backward": staticmethod(backward),
        },
    )

    def call(*inputs: Any) -> Any:  # noqa: ANN401  tensors and numbers
        run = of_transforms.apply if are_transforms_active() else operator
        return run(*inputs)

    return call


def are_transforms_active() -> bool:
    """Return whether this runs within torch.func.grad, vmap or the like."""
    return torch._C._are_functorch_transforms_active()  # noqa: SLF001  torch has no public way


def _save_nothing(ctx: object, inputs: object, output: object) -> None:
    del ctx, inputs, output
