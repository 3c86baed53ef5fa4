"""The operators of one step over ring buffers, and their fake kernels. Autograd records neither."""

from typing import Any, Final

import torch
from torch import Tensor

from attn_ops._torch_ops import refuse_other_devices

attention_step: Final = torch.ops.attn_ops._attention_step_.default
"""The output of a step; writes a slot of each ring, and position."""

multihead_attention_step: Final = torch.ops.attn_ops._multihead_attention_step_.default
"""The output of a layer's step, projections and all; it writes what a step writes."""


@torch.library.register_fake("attn_ops::_attention_step_")
def _fake_step(query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any) -> Tensor:  # noqa: ANN401
    refuse_other_devices(query, key, value, *others, *named.values())
    return query.new_empty((*query.shape[:3], value.shape[3]))


@torch.library.register_fake("attn_ops::_multihead_attention_step_")
def _fake_multihead_step(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    out_weight: Tensor,
    *others: Any,  # noqa: ANN401
    **named: Any,  # noqa: ANN401
) -> Tensor:
    refuse_other_devices(x, in_weight, in_bias, out_weight, *others, *named.values())
    return x.new_empty((x.shape[0], out_weight.shape[0]))
