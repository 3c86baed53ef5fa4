"""The operator of one step over ring buffers, and its fake kernel. Autograd does not record it."""

from typing import Any, Final

import torch
from torch import Tensor

from attn_ops._torch_ops import refuse_other_devices

attention_step: Final = torch.ops.attn_ops._attention_step_.default
"""The output of a step; writes a slot of each ring, and position."""


@torch.library.register_fake("attn_ops::_attention_step_")
def _fake_step(query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any) -> Tensor:  # noqa: ANN401
    refuse_other_devices(query, key, value, *others, *named.values())
    return query.new_empty((*query.shape[:3], value.shape[3]))
