"""How tensors must lie for the kernels that read them, and in which dtype these compute."""

import torch
from torch import Tensor


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of softmax, of sums and of LSEs for such inputs: float64 or float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def with_unit_stride(x: Tensor) -> Tensor:
    """Return `x`, or a copy of it if its last axis has not the stride 1 that kernels read."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
