"""How many floating-point operations `torch.utils.flop_counter` takes attention for.

As torch counts its own on CUDA, for it counts none on the CPU: two for each multiplication of the
matrix products, nothing for softmax, and every query against every key of its sequence, whatever
else a mask leaves out. What finding the scores of relative positions takes is left out, too.
"""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import register_flop_formula

from attn_ops import _torch_ops

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


def _pairs(query: Tensor, key: Tensor, arguments: dict[str, Any]) -> int:
    """Return how many queries and keys of one head meet."""
    q_start: Tensor | None = arguments.get("q_start")
    if q_start is None:
        return query.shape[0] * query.shape[1] * key.shape[1]
    if isinstance(q_start, FakeTensor):  # whose lengths nobody knows
        return (len(q_start) - 1) * arguments["max_q_len"] * arguments["max_k_len"]
    k_len: Tensor | None = arguments.get("k_len")
    key_lengths = arguments["k_start"].diff() if k_len is None else k_len
    return int((q_start.diff() * key_lengths).sum())


def _register(operator: torch._ops.OpOverload, products_of_k: int, products_of_kv: int) -> None:
    names = [argument.name for argument in operator._schema.arguments]  # noqa: SLF001  torch offers no public way

    def count(*inputs: Any, out_val: object = None, **named: Any) -> int:  # noqa: ANN401, ARG001
        arguments = dict(zip(names, inputs, strict=False)) | named
        query, key, value = (arguments[name] for name in ("query", "key", "value"))
        width = products_of_k * query.shape[3] + products_of_kv * value.shape[3]
        return 2 * query.shape[2] * _pairs(query, key, arguments) * width

    register_flop_formula(operator.overloadpacket, get_raw=True)(count)


for _operator in _FORWARD:
    _register(_operator, 1, 1)
for _operator in _BACKWARD:  # scores once more, dP and dV; dQ and dK
    _register(_operator, 3, 2)
