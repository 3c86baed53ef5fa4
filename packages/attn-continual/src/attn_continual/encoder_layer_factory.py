"""Encoder layers by the name of their kind, as encoders want them."""

from __future__ import annotations

import copy
from dataclasses import KW_ONLY, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import nn
from torch.nn.functional import relu

from attn_continual.continual_encoder_layer import (
    RetroactiveTransformerEncoderLayer,
    SingleOutputTransformerEncoderLayer,
)
from attn_continual.encoder_layer import TransformerEncoderLayer

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

EncoderLayerKind = Literal["retroactive", "single_output", "single_output_forward", "regular"]
"""Whether a layer encodes, when stepping, a window's every row, or one row of a window of its own;
and without steps one row of a sequence, or all."""


@dataclass(frozen=True)
class TransformerEncoderLayerFactory:
    """Make the layers of an encoder: the arguments of `TransformerEncoderLayer`, kept for each.

    >>> encoder_layer = TransformerEncoderLayerFactory(d_model=16, nhead=2, sequence_len=8)
    >>> type(encoder_layer("retroactive")).__name__
    'RetroactiveTransformerEncoderLayer'
    """

    d_model: int
    nhead: int
    dim_feedforward: int = 2048
    dropout: float = 0.1
    activation: str | Callable[[Tensor], Tensor] = relu
    layer_norm_eps: float = 1e-5
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    sequence_len: int | None = None
    _: KW_ONLY
    norm_first: bool = False
    bias: bool = True
    batch_first: bool = True
    embed_dim_second: bool = True

    def __call__(self, kind: EncoderLayerKind) -> TransformerEncoderLayer:
        """Return a new layer.

        Raises: ValueError if `kind` is none, or `sequence_len` is missing.
        """
        layer, options = encoder_layer_class(kind)
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        if isinstance(self.activation, nn.Module):
            settings["activation"] = copy.deepcopy(self.activation)
        return layer(**settings, **options)


def encoder_layer_class(kind: object) -> tuple[type[TransformerEncoderLayer], dict[str, Any]]:
    """Return the class of a kind of layer, and the arguments that make it of this kind.

    Raises: ValueError if `kind` is none.
    """
    if kind not in get_args(EncoderLayerKind):
        raise ValueError(
            f"encoder layer: expected one of {', '.join(get_args(EncoderLayerKind))}, got {kind!r}"
        )
    if kind == "regular":
        return TransformerEncoderLayer, {}
    if kind == "retroactive":
        return RetroactiveTransformerEncoderLayer, {}
    is_restricted = kind == "single_output_forward"
    return SingleOutputTransformerEncoderLayer, {"single_output_forward": is_restricted}
