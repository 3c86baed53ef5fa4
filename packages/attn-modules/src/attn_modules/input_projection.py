"""`InputProjection`: the linear maps from a layer's inputs to queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class InputProjectionConfig:
    """One linear map: the width of its inputs and outputs, and whether it adds a bias."""

    in_features: int
    out_features: int
    bias: bool = True


class InputProjection(nn.Module):
    """Map query, key and value, each by its own linear map, to what a mechanism takes.

    Shapes: query [B, Mq, E]; key [B, Mkv, E']; value [B, Mkv, E'']; the results have the
        `out_features` of their maps instead.
    query_proj_params, key_proj_params, value_proj_params: the maps; those of key and value
        default to the query's.
    use_separate_proj_weight: if False, the three maps share one weight, not their biases, and
        self-attention (query is key is value) takes one matrix product instead of three.
    state_dict: `q_proj`, `k_proj` and `v_proj`, each with `.weight` [out, in] and, if it has one,
        `.bias` [out]. A shared weight stands there under all three names.
    Raises: ValueError if maps of different shapes are to share a weight.
    """

    def __init__(
        self,
        query_proj_params: InputProjectionConfig,
        key_proj_params: InputProjectionConfig | None = None,
        value_proj_params: InputProjectionConfig | None = None,
        use_separate_proj_weight: bool = True,
    ) -> None:
        super().__init__()
        q_params = query_proj_params
        k_params = q_params if key_proj_params is None else key_proj_params
        v_params = q_params if value_proj_params is None else value_proj_params
        self.use_separate_proj_weight = use_separate_proj_weight
        self.q_proj = _linear(q_params)
        self.k_proj = _linear(k_params)
        self.v_proj = _linear(v_params)
        if not use_separate_proj_weight:
            shapes = [[p.out_features, p.in_features] for p in (q_params, k_params, v_params)]
            if shapes[1:] != shapes[:1] * 2:
                raise ValueError(
                    "InputProjection: expected weights of one shape [out, in] to share, got "
                    f"{shapes[0]}, {shapes[1]} and {shapes[2]} for query, key and value; set "
                    "use_separate_proj_weight=True"
                )
            self.k_proj.weight = self.v_proj.weight = self.q_proj.weight

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the projected query, key and value.

        Raises: ValueError if a dtype is not that of the weights, outside of autocast.
        """
        inputs, maps = (query, key, value), (self.q_proj, self.k_proj, self.v_proj)
        for x, proj in zip(inputs, maps, strict=True):
            weight = proj.weight
            if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
                raise ValueError(
                    f"InputProjection: expected {weight.dtype}, as the weights are, got {x.dtype}; "
                    "cast one of them"
                )
        if not self.use_separate_proj_weight and query is key and key is value:
            rows = functional.linear(query, self.q_proj.weight)
            q, k, v = (
                rows if proj.bias is None else rows + proj.bias.to(rows.dtype)
                for proj in (self.q_proj, self.k_proj, self.v_proj)
            )
            return q, k, v
        return self.q_proj(query), self.k_proj(key), self.v_proj(value)


def _linear(params: InputProjectionConfig) -> nn.Linear:
    return nn.Linear(params.in_features, params.out_features, bias=params.bias)
