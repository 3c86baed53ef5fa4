"""How many floating-point operations `torch.utils.flop_counter` takes attention for.

As torch counts its own on CUDA, for it counts none on the CPU: two for each multiplication of the
matrix products, nothing for softmax, and every query against every key of its sequence, whatever
else a mask leaves out. What finding the scores of relative positions takes is left out, too. A step
counts with a full window.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import register_flop_formula

from attn_ops import _step_op, _torch_ops

_Arguments = dict[str, Any]

_FORWARD = (
    _torch_ops.public_attention,
    _torch_ops.public_attention_with_lse,
    _torch_ops.unmasked_attention,
    _torch_ops.attention,
    _torch_ops.attention_forward,
    torch.ops.attn_ops.attention_by_position.default,
)
_BACKWARD = (
    _torch_ops.attention_backward,
    torch.ops.attn_ops._attention_by_position_backward.default,  # noqa: SLF001  ours
)


def _pairs(query: Tensor, key: Tensor, arguments: _Arguments) -> int:
    """Return how many queries and keys of one head meet."""
    q_start: Tensor | None = arguments.get("q_start")
    if q_start is None:
        return query.shape[0] * query.shape[1] * key.shape[1]
    if isinstance(q_start, FakeTensor):  # whose lengths nobody knows
        return (len(q_start) - 1) * arguments["max_q_len"] * arguments["max_k_len"]
    k_len: Tensor | None = arguments.get("k_len")
    key_lengths = arguments["k_start"].diff() if k_len is None else k_len
    return int((q_start.diff() * key_lengths).sum())


def _attention_flops(arguments: _Arguments, *, products_of_k: int, products_of_kv: int) -> int:
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    width = products_of_k * query.shape[3] + products_of_kv * value.shape[3]
    return 2 * query.shape[2] * _pairs(query, key, arguments) * width


def _flops_beside_rings(arguments: _Arguments, query_heads: int) -> int:
    key_ring, value_ring = arguments["key_ring"], arguments["value_ring"]
    extra_key: Tensor | None = arguments.get("extra_key")
    keys = arguments["window"] + (0 if extra_key is None else extra_key.shape[0])
    pairs = key_ring.shape[0] * query_heads * keys
    return 2 * pairs * (key_ring.shape[3] + value_ring.shape[3])


def _step_flops(arguments: _Arguments) -> int:
    return _flops_beside_rings(arguments, arguments["query"].shape[2])


def _multihead_step_flops(arguments: _Arguments) -> int:
    in_weight, out_weight = arguments["in_weight"], arguments["out_weight"]
    projections = 2 * arguments["x"].shape[0] * (in_weight.numel() + out_weight.numel())
    query_heads = out_weight.shape[1] // arguments["value_ring"].shape[3]
    return projections + _flops_beside_rings(arguments, query_heads)


def _register(operator: torch._ops.OpOverload, flops: Callable[[_Arguments], int]) -> None:
    names = [argument.name for argument in operator._schema.arguments]  # noqa: SLF001  torch offers no public way

    def count(*inputs: Any, out_val: object = None, **named: Any) -> int:  # noqa: ANN401, ARG001
        return flops(dict(zip(names, inputs, strict=False)) | named)

    register_flop_formula(operator.overloadpacket, get_raw=True)(count)


for _operator in _FORWARD:
    _register(_operator, partial(_attention_flops, products_of_k=1, products_of_kv=1))
for _operator in _BACKWARD:  # scores once more, dP and dV; dQ and dK
    _register(_operator, partial(_attention_flops, products_of_k=3, products_of_kv=2))
_register(_step_op.attention_step, _step_flops)
_register(_step_op.multihead_attention_step, _multihead_step_flops)
