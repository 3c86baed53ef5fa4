"""`Attention`, the base of every mechanism, and the flags by which its callers treat it."""

from __future__ import annotations

import dataclasses
import inspect
import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, SupportsFloat

from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self

    from attn_modules.attention_mask import AttentionMask
    from attn_modules.registry import AttentionConfig


class Attention(nn.Module, ABC):
    """Mix the rows of `v` for each row of `q`: one mechanism, without projections.

    Shapes: q [B, H, Mq, K]; k [B, H, Mkv, K]; v [B, H, Mkv, Kv]; result [B, H, Mq, Kv]. Or all
        of them [B * H, M, K], where batch element b's head h is row b * H + h.
    dropout: the probability of dropping, active in training only.
    Flags, by which `MultiHeadDispatch` and other callers treat a mechanism, each True or False:
        requires_input_projection (default True): queries, keys and values are to be projected.
        requires_head_dimension: it takes [B, H, M, K] only.
        supports_head_dimension: it takes [B, H, M, K] too, so heads need not be folded.
        requires_skip_multi_head: it takes [B, M, dim_model] and deals with heads by itself.
        requires_same_k_q_dimensions: there must be as many keys as queries.
        requires_squared_context: their number must be a square, such as the pixels of an image.
        requires_separate_masks: attention and key padding masks are to come apart, not merged.
        supports_attention_mask (default True): `forward` takes `att_mask`, though some refuse it
            for some lengths.
        supports_key_padding_mask: `forward` takes `key_padding_mask`.
    causal: whether query i sees keys j <= i alone; an attribute, default False.
    Raises: ValueError if `dropout` is outside [0, 1].
    """

    requires_input_projection: ClassVar[bool] = True
    requires_head_dimension: ClassVar[bool] = False
    supports_head_dimension: ClassVar[bool] = False
    requires_skip_multi_head: ClassVar[bool] = False
    requires_same_k_q_dimensions: ClassVar[bool] = False
    requires_squared_context: ClassVar[bool] = False
    requires_separate_masks: ClassVar[bool] = False
    supports_attention_mask: ClassVar[bool] = True
    supports_key_padding_mask: ClassVar[bool] = False

    causal: bool = False

    def __init__(self, dropout: float | None = None) -> None:
        super().__init__()
        is_number = dropout is None or isinstance(dropout, SupportsFloat)
        self.dropout = float(dropout or 0.0) if is_number else math.nan
        if not 0.0 <= self.dropout <= 1.0:
            raise ValueError(
                f"{type(self).__name__}: expected dropout, a probability in [0, 1], got {dropout!r}"
            )

    @classmethod
    def from_config(cls, config: AttentionConfig) -> Self:
        """Make the mechanism that `config` describes; what is None there takes its default.

        A dropout without a default is 0. Modules and tensors in `config` are used as they are, not
        copied.
        Raises: TypeError if another argument without a default is missing.
        """
        fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        name = fields.pop("name")
        given = {field: value for field, value in fields.items() if value is not None}
        required = _required_arguments(cls)
        if "dropout" in required:
            given.setdefault("dropout", 0.0)
        missing = [argument for argument in required if argument not in given]
        if missing:
            raise TypeError(
                f"build_attention: expected {', '.join(missing)} for {name!r}, got none; its "
                f"fields are {', '.join(fields)}"
            )
        return cls(**given)

    @property
    def active_dropout(self) -> float:
        """The probability of dropping as of now: 0 in evaluation."""
        return self.dropout if self.training else 0.0

    @abstractmethod
    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        att_mask: Tensor | AttentionMask | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the attended values, in the layout of `q`.

        att_mask: [Mq, Mkv], [B, Mq, Mkv], [B * H, Mq, Mkv] or [B, H, Mq, Mkv], where any extent
            may be 1: bool, True keeps a key; or a float that is added to the scores; or an
            `AttentionMask`. A larger one is cropped to the first Mq queries and Mkv keys.
            Careful: a float mask of ones and zeros, such as torch.ones(M, M).tril(), hides
            nothing, for it adds 1 or 0 to the scores. Pass mask.bool(), or set `causal`.
        key_padding_mask: [B, Mkv] or [B * H, Mkv]: bool, True keeps a key; or a float, 0 keeps and
            -inf, or the lowest of its dtype, pads. A larger one is cropped. What a padded key
            holds, even NaN, changes nothing.
        A query that sees no key gives 0.
        Raises: ValueError if shapes or dtypes do not fit, or a float key_padding_mask on the CPU
            holds other numbers; TypeError if a mask is something else; NotImplementedError if the
            mechanism cannot honour a mask.
        """

    def extra_repr(self) -> str:
        """Return what `print` shows between the brackets."""
        return f"dropout={self.dropout}" + (", causal=True" if self.causal else "")


def _required_arguments(constructor: type[Attention]) -> list[str]:
    """Return the arguments that have no default."""
    parameters = inspect.signature(constructor).parameters.values()
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in stars]
