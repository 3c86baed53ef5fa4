"""The seed of dropout, drawn alike by whatever calls an operator with one."""

import torch
from torch import Tensor


def draw_seed(who: str, p: float, device: torch.device) -> Tensor | None:
    """Draw what decides the dropped probabilities, int64 [2] on the CPU; None if p is 0.

    A tensor, so that `torch.compile` draws it anew at each call; from torch's CPU generator.
    device: that of the inputs of `who`, which speaks in the error.
    Raises: ValueError if a CUDA graph is being captured, whose replays would all have this seed.
    """
    if p == 0.0:
        return None
    is_eager_cuda = device.type == "cuda" and not torch.compiler.is_compiling()
    if is_eager_cuda and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            f"{who}: expected p=0 while a CUDA graph is captured, got {p}: every replay would drop "
            "the same; leave attention with dropout out of the graph"
        )
    return torch.randint(2**62, (2,), dtype=torch.int64, device="cpu")
