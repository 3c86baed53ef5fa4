"""An encoder layer over whole sequences, with torch's parameters: what the continual ones share."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.functional import relu

from attn_continual._layout import SequenceLayout
from attn_continual._projections import (
    attend_rows,
    check_causal_hint,
    copy_weights,
    torch_bias,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from typing_extensions import Self


class TransformerEncoderLayer(nn.TransformerEncoderLayer):
    """Encode every row of a sequence, as torch's layer does, with its parameters.

    Shapes: forward [N, E, T], E = d_model, to the same; [N, T, E] without `embed_dim_second`,
        [T, N, E] without both it and `batch_first`. Masks as for torch's layer; a query that sees
        no key gets 0 from attention before its projection.
    sequence_len: the window, L, of the layers that step; this one takes any length.
    activation: "relu", "gelu", a module or a function.
    norm_first, bias: as for torch's layer.
    """

    layout: SequenceLayout

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = relu,
        layer_norm_eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        sequence_len: int | None = None,
        *,
        norm_first: bool = False,
        bias: bool = True,
        batch_first: bool = True,
        embed_dim_second: bool = True,
    ) -> None:
        super().__init__(
            d_model,
            nhead,
            dim_feedforward,
            dropout,
            activation,
            layer_norm_eps,
            batch_first,
            norm_first,
            bias,
            device,
            dtype,
        )
        self.sequence_len = sequence_len
        self.layout = SequenceLayout(batch_first, embed_dim_second)

    @classmethod
    def build_from(
        cls,
        layer: nn.TransformerEncoderLayer,
        sequence_len: int,
        **options: Any,  # noqa: ANN401  arguments of the constructor
    ) -> Self:
        """Return a layer with the weights, mode, settings and layout of torch's, sharing nothing.

        options: what else the constructor takes, such as embed_dim_second.
        """
        settings = {**_torch_settings(layer), "embed_dim_second": False, **options}
        built = cls(**settings, sequence_len=sequence_len)
        copy_weights(layer.self_attn, built.self_attn)
        _copy_all_but_attention(layer, built)
        return built.train(layer.training)

    def to_torch(self) -> nn.TransformerEncoderLayer:
        """Return torch's layer with this one's weights, mode and settings, sharing nothing.

        Torch's layer takes no features before time: `embed_dim_second` is not kept.
        """
        built = nn.TransformerEncoderLayer(**_torch_settings(self))
        copy_weights(self.self_attn, built.self_attn)
        _copy_all_but_attention(self, built)
        return built.train(self.training)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Return the encoded sequence, without a window; see the class for shapes."""
        check_causal_hint(src_mask, is_causal)
        rows = self.layout.to_rows(src)
        bias = torch_bias(src_mask, src_key_padding_mask, rows.shape[1], self.self_attn.num_heads)
        return self.layout.from_rows(self.encode(rows, bias))

    def encode(self, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the encoded rows [N, T, E], or those that `forward` is restricted to.

        bias: of attention, as for `attend_rows`.
        """
        queries = self.queries_of_forward(rows.shape[1])
        attended = attend_rows(self.self_attn, self.attention_input(rows), queries, bias)
        return self.after_attention(rows[:, queries], attended)

    def queries_of_forward(self, length: int) -> slice:
        """Return which rows of a sequence have an output in `forward`: here all."""
        del length
        return slice(None)

    def attention_input(self, rows: Tensor) -> Tensor:
        """Return what attention sees of the layer's input."""
        return self.norm1(rows) if self.norm_first else rows

    def after_attention(self, rows: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output for its input and the attention of the same rows."""
        rows = rows + self.dropout1(attended)
        if self.norm_first:
            return rows + self._feed_forward(self.norm2(rows))
        rows = self.norm1(rows)
        return self.norm2(rows + self._feed_forward(rows))

    def _feed_forward(self, rows: Tensor) -> Tensor:
        hidden = self.dropout(self.activation(self.linear1(rows)))
        return self.dropout2(self.linear2(hidden))


def _torch_settings(layer: nn.TransformerEncoderLayer) -> dict[str, Any]:
    """Return the arguments of torch's constructor that make a layer like this one."""
    weight = layer.linear1.weight
    return {
        "d_model": layer.self_attn.embed_dim,
        "nhead": layer.self_attn.num_heads,
        "dim_feedforward": layer.linear1.out_features,
        "dropout": layer.self_attn.dropout,
        "activation": layer.activation,
        "layer_norm_eps": layer.norm1.eps,
        "batch_first": layer.self_attn.batch_first,
        "norm_first": layer.norm_first,
        "bias": layer.linear1.bias is not None,
        "device": weight.device,
        "dtype": weight.dtype,
    }


def _copy_all_but_attention(
    source: nn.TransformerEncoderLayer, target: nn.TransformerEncoderLayer
) -> None:
    """Give the target copies of everything that each token goes through by itself."""
    for name, child in source.named_children():
        if name != "self_attn":
            setattr(target, name, copy.deepcopy(child))
