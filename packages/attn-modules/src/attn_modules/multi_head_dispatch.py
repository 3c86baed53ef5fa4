"""`MultiHeadDispatch`: a multi-head layer around any mechanism, projections included."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from attn_modules._inputs import as_keep
from attn_modules.attention import Attention
from attn_modules.attention_mask import AttentionMask
from attn_modules.input_projection import InputProjection, InputProjectionConfig
from attn_modules.mask_merging import maybe_merge_masks
from attn_modules.registry import AttentionConfig, build_attention
from attn_modules.rotary import RotaryEmbedding

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class MultiHeadDispatchConfig:
    """The arguments of `MultiHeadDispatch`; None stands for an argument's default."""

    dim_model: int
    num_heads: int
    attention: Attention | Mapping[str, Any] | AttentionConfig
    bias: tuple[bool, bool, bool, bool] | bool | None = None
    residual_dropout: float | None = None
    use_separate_proj_weight: bool | None = None
    dim_key: int | None = None
    dim_value: int | None = None
    in_proj_container: nn.Module | None = None
    use_rotary_embeddings: bool | None = None
    out_proj: nn.Module | None = None
    kdim: int | None = None
    vdim: int | None = None


class MultiHeadDispatch(nn.Module):
    """Project the inputs, attend in each head with `attention`, join the heads and project.

    Shapes: query [B, Mq, dim_model]; key [B, Mkv, kdim]; value [B, Mkv, vdim]; result
        [B, Mq, dim_model]. A batch of 1 goes with any other.
    attention: a mechanism, or a configuration for `build_attention`. What is done follows from its
        flags: if it `requires_skip_multi_head`, it is called with the inputs as they are and
        nothing is projected; if not `requires_input_projection`, its heads are slices of the
        inputs. Heads are views [B, H, M, K] where it takes them.
    bias: whether the projections of query, key, value and result that are made here have one, or
        one bool for all; None: all have one.
    residual_dropout: the probability of dropping an element of the result in training.
    use_separate_proj_weight: False lets query, key and value share one weight.
    dim_key, dim_value: width of the projected keys and values of all heads; default: dim_model.
    in_proj_container: a module that is called as an `InputProjection`, instead of one made here.
    use_rotary_embeddings: turn queries and keys of each head by their positions.
    out_proj: a module [B, Mq, dim_value] -> [B, Mq, dim_model], instead of a linear map.
    kdim, vdim: width of the inputs `key` and `value`; default: dim_model.
    state_dict: `in_proj_container.{q,k,v}_proj.{weight,bias}` (as `InputProjection`), `proj.weight`
        [dim_model, dim_value] and `proj.bias` [dim_model], the names that xFormers uses, and what
        the mechanism has below `attention.`.
    Raises: ValueError if widths do not fit, or an argument asks for what the mechanism skips;
        TypeError if `attention` is no mechanism; as `build_attention` for a configuration.
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2.

    >>> from attn_modules import build_attention
    >>> attention = build_attention({"name": "local", "window_size": 3})
    >>> layer = MultiHeadDispatch(dim_model=32, num_heads=4, attention=attention)
    >>> layer(torch.randn(2, 10, 32)).shape
    torch.Size([2, 10, 32])
    """

    def __init__(
        self,
        dim_model: int,
        num_heads: int,
        attention: Attention | Mapping[str, Any] | AttentionConfig,
        bias: tuple[bool, bool, bool, bool] | bool | None = None,
        residual_dropout: float = 0.0,
        use_separate_proj_weight: bool = True,
        dim_key: int | None = None,
        dim_value: int | None = None,
        in_proj_container: nn.Module | None = None,
        use_rotary_embeddings: bool = False,
        out_proj: nn.Module | None = None,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
    ) -> None:
        super().__init__()
        self.dim_model = dim_model
        self.num_heads = num_heads
        self.dim_key = dim_model if dim_key is None else dim_key
        self.dim_value = dim_model if dim_value is None else dim_value
        self.kdim = dim_model if kdim is None else kdim
        self.vdim = dim_model if vdim is None else vdim
        self.attention = _mechanism(attention)
        biases = _four_biases(bias)
        self._check_widths()
        self._check_skipped(
            in_projection={
                "in_proj_container": in_proj_container is not None,
                "use_separate_proj_weight=False": not use_separate_proj_weight,
            },
            heads={
                "out_proj": out_proj is not None,
                "use_rotary_embeddings": use_rotary_embeddings,
                "bias=False": not all(biases),
            },
        )
        # Compared with None, for an empty nn.Sequential is False.
        if self._projects_inputs and in_proj_container is None:
            in_proj_container = InputProjection(
                InputProjectionConfig(dim_model, self.dim_key, biases[0]),
                InputProjectionConfig(self.kdim, self.dim_key, biases[1]),
                InputProjectionConfig(self.vdim, self.dim_value, biases[2]),
                use_separate_proj_weight=use_separate_proj_weight,
            )
        self.in_proj_container = in_proj_container
        self.rotary_embeddings = (
            RotaryEmbedding(self.dim_key // num_heads) if use_rotary_embeddings else None
        )
        if not self.attention.requires_skip_multi_head and out_proj is None:
            out_proj = _zero_bias(self.dim_value, dim_model, biases[3])
        self.proj = out_proj
        self.resid_drop = nn.Dropout(residual_dropout)

    @classmethod
    def from_config(cls, config: MultiHeadDispatchConfig) -> Self:
        """Make the layer that `config` describes, of the very modules that it holds."""
        fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        return cls(**{name: value for name, value in fields.items() if value is not None})

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        att_mask: Tensor | AttentionMask | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the layer's result [B, Mq, dim_model].

        key: default: `query`. value: default: `key`.
        att_mask, key_padding_mask: as `Attention.forward` takes them. A mechanism that takes no
            key padding gets both as one mask.
        Raises: ValueError if shapes do not fit; NotImplementedError if the mechanism takes no
            such mask.
        """
        key = query if key is None else key
        value = key if value is None else value
        batch = self._check_inputs(query, key, value)
        extents = (batch, query.shape[1], key.shape[1])
        masks = self._masks(att_mask, key_padding_mask, extents)
        projected = (query, key, value)
        if self.in_proj_container is not None:
            projected = self.in_proj_container(*projected)
        q, k, v = (x.expand(batch, -1, -1) for x in projected)
        if self.proj is None:
            return self.resid_drop(self.attention(q, k, v, **masks))
        heads = self._attend(self._split(q), self._split(k), self._split(v), masks)
        return self.resid_drop(self.proj(heads.transpose(1, 2).flatten(2)))

    @property
    def _projects_inputs(self) -> bool:
        attention = self.attention
        return attention.requires_input_projection and not attention.requires_skip_multi_head

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Mapping[str, Any]) -> Tensor:
        """Return the heads' results [B, H, Mq, Kv]."""
        if self.rotary_embeddings is not None:
            q, k = self.rotary_embeddings(q, k)
        attention = self.attention
        if attention.supports_head_dimension or attention.requires_head_dimension:
            return attention(q, k, v, **masks)
        folded = attention(*(x.flatten(0, 1) for x in (q, k, v)), **masks)
        return folded.unflatten(0, (-1, self.num_heads))

    def _split(self, x: Tensor) -> Tensor:
        """View [B, M, H * K] as [B, H, M, K]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _masks(
        self,
        att_mask: Tensor | AttentionMask | None,
        key_padding_mask: Tensor | None,
        extents: tuple[int, int, int],
    ) -> dict[str, Tensor | AttentionMask]:
        """Return the masks by the names under which the mechanism takes them."""
        attention = self.attention
        pads_apart = attention.supports_key_padding_mask
        is_refused = not attention.supports_attention_mask
        if is_refused and (
            att_mask is not None or (key_padding_mask is not None and not pads_apart)
        ):
            name = "key_padding_mask" if att_mask is None else "att_mask"
            raise NotImplementedError(
                f"MultiHeadDispatch: expected no {name}, which {type(attention).__name__} cannot "
                "honour; scaled_dot_product takes any mask"
            )
        if key_padding_mask is not None and not pads_apart:
            att_mask, key_padding_mask = self._merged(att_mask, key_padding_mask, extents), None
        named = {"att_mask": att_mask, "key_padding_mask": key_padding_mask}
        return {name: mask for name, mask in named.items() if mask is not None}

    def _merged(
        self,
        att_mask: Tensor | AttentionMask | None,
        key_padding_mask: Tensor,
        extents: tuple[int, int, int],
    ) -> Tensor | None:
        batch, queries, keys = extents
        heads = 1 if self.proj is None else self.num_heads
        mask = att_mask.values if isinstance(att_mask, AttentionMask) else att_mask
        if mask is not None and mask.dim() == 4:
            if mask.shape[0] not in (1, batch) or mask.shape[1] not in (1, heads):
                raise ValueError(
                    f"MultiHeadDispatch: expected att_mask for B={batch} and H={heads}, where "
                    f"either may be 1, got {list(mask.shape)}"
                )
            mask = mask.expand(batch, heads, -1, -1).flatten(0, 1)
        kept = as_keep("MultiHeadDispatch", key_padding_mask)
        merged = maybe_merge_masks(mask, kept, batch, keys, heads, queries)
        if merged is not None and self.attention.requires_head_dimension:
            return merged.unflatten(0, (batch, heads))
        return merged

    def _check_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> int:
        """Check the inputs' shapes and return B."""
        inputs, widths = (query, key, value), (self.dim_model, self.kdim, self.vdim)
        fits = all(x.dim() == 3 for x in inputs)
        fits = fits and all(x.shape[2] == width for x, width in zip(inputs, widths, strict=True))
        batch = max(x.shape[0] for x in inputs)
        if fits:
            fits = key.shape[1] == value.shape[1] and {x.shape[0] for x in inputs} <= {1, batch}
        if not fits:
            raise ValueError(
                f"MultiHeadDispatch: expected query [B, Mq, {widths[0]}], key [B, Mkv, "
                f"{widths[1]}] and value [B, Mkv, {widths[2]}], where B may be 1, got "
                f"{list(query.shape)}, {list(key.shape)} and {list(value.shape)}"
            )
        if self.attention.requires_same_k_q_dimensions and query.shape[1] != key.shape[1]:
            raise ValueError(
                f"MultiHeadDispatch: expected as many keys as queries, which "
                f"{type(self.attention).__name__} needs, got {key.shape[1]} keys and "
                f"{query.shape[1]} queries"
            )
        return batch

    def _check_widths(self) -> None:
        widths = (self.dim_key, self.dim_value)
        if self.num_heads <= 0 or any(width <= 0 or width % self.num_heads for width in widths):
            raise ValueError(
                "MultiHeadDispatch: expected dim_key and dim_value, which default to dim_model, "
                f"to be multiples of num_heads, got {self.dim_key} and {self.dim_value} for "
                f"{self.num_heads} heads"
            )
        inputs = (self.dim_model, self.kdim, self.vdim)
        if not self._projects_inputs and inputs != (self.dim_key, *widths):
            raise ValueError(
                f"MultiHeadDispatch: expected one width for {type(self.attention).__name__}, whose "
                f"inputs are not projected, got dim_model={inputs[0]}, kdim={inputs[1]}, "
                f"vdim={inputs[2]}, dim_key={widths[0]} and dim_value={widths[1]}"
            )

    def _check_skipped(self, in_projection: dict[str, bool], heads: dict[str, bool]) -> None:
        """Refuse arguments, by whether they are given, for parts the mechanism goes without."""
        attention = self.attention
        skips = attention.requires_skip_multi_head
        unused = {} if self._projects_inputs else in_projection
        unused = unused | heads if skips else unused
        for name, is_given in unused.items():
            if is_given:
                raise ValueError(
                    f"MultiHeadDispatch: expected no {name}, because "
                    f"{type(attention).__name__} is called with the inputs as they are; what it "
                    "takes itself belongs in its own configuration"
                )
        own_heads = getattr(attention, "num_heads", self.num_heads)
        if skips and own_heads != self.num_heads:
            raise ValueError(
                f"MultiHeadDispatch: expected num_heads={own_heads}, which "
                f"{type(attention).__name__} was made with, got {self.num_heads}"
            )


def _mechanism(attention: Attention | Mapping[str, Any] | AttentionConfig) -> Attention:
    """Return the mechanism given, or the one that a configuration describes.

    Raises: TypeError if it is neither.
    """
    if isinstance(attention, Mapping | AttentionConfig):
        attention = build_attention(attention)
    if not isinstance(attention, Attention):
        name = attention if isinstance(attention, str) else "local"
        raise TypeError(
            "MultiHeadDispatch: expected attention, a mechanism or a configuration such as "
            f"{{'name': {name!r}}}, got {attention!r}"
        )
    return attention


def _four_biases(bias: Sequence[bool] | bool | None) -> tuple[bool, ...]:
    """Return which projections have a bias.

    Raises: ValueError if they are not four.
    """
    biases = (True if bias is None else bias,) * 4 if not isinstance(bias, Sequence) else bias
    if len(biases) != 4:
        raise ValueError(
            "MultiHeadDispatch: expected bias, a bool or four, of query, key, value and result, "
            f"got {bias!r}"
        )
    return tuple(biases)


def _zero_bias(in_features: int, out_features: int, bias: bool) -> nn.Linear:
    """Return a linear map whose bias, if it has one, starts at 0."""
    linear = nn.Linear(in_features, out_features, bias=bias)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
