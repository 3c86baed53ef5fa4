"""The autocast rule of attention, the one that torch has for scaled_dot_product_attention."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attn_ops import _torch_ops

_DISPATCH_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}
"""Of each device type that has operators."""

_PARAMETERS = ("attn_bias", "slopes", "table", "sink")
"""The floating-point tensors that the public operators may get by name."""


def is_enabled(query: object) -> bool:
    """Return whether autocast is on for the device of `query`."""
    if not isinstance(query, Tensor):
        return False
    device_type = query.device.type
    return device_type in _DISPATCH_KEYS and torch.is_autocast_enabled(device_type)


def cast_inputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Any,  # noqa: ANN401  any attn_bias
) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Return the inputs in the dtype of the autocast region.

    Float64 stays, as everywhere in autocast; so does a float32 or boolean bias, which kernels
    read as it is.
    """
    dtype = torch.get_autocast_dtype(query.device.type)
    bias = cast_parameters(bias, dtype)
    return _cast(query, dtype), _cast(key, dtype), _cast(value, dtype), bias


def cast_parameters(parameters: Any, dtype: torch.dtype) -> Any:  # noqa: ANN401  a tensor or none
    """Return a tensor that a mask adds or compares in the region's dtype, float32 as it is."""
    is_read_as_it_is = not isinstance(parameters, Tensor) or parameters.dtype == torch.float32
    return parameters if is_read_as_it_is else _cast(parameters, dtype)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    is_eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(dtype) if is_eligible else tensor


def _with_cast_inputs(operator: Callable[..., Any]) -> Callable[..., Any]:
    def rule(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None = None,
        *mask: Any,  # noqa: ANN401
        **named: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        dtype = torch.get_autocast_dtype(query.device.type)
        named |= {
            name: cast_parameters(named[name], dtype) for name in _PARAMETERS if name in named
        }
        inputs = cast_inputs(query, key, value, bias)
        with torch.autocast(query.device.type, enabled=False):
            return operator(*inputs, *mask, **named)

    return rule


for _key in _DISPATCH_KEYS.values():
    for _operator in (
        _torch_ops.public_attention,
        _torch_ops.public_attention_with_lse,
        _torch_ops.unmasked_attention,
    ):
        _name = _operator._schema.name.split("::")[1]  # noqa: SLF001  torch offers no public way
        _torch_ops.registry.impl(_name, _with_cast_inputs(_operator), _key)
