"""FAVOR+, the Performer's attention: softmax attention estimated by random features."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attn_modules.feature_maps import FEATURE_MAPS, FeatureMapType
from attn_modules.mechanisms._kernel_attention import Kernel, KernelAttention
from attn_modules.registry import register_attention
from attn_ops.scalars import check_counts

if TYPE_CHECKING:
    from torch import Tensor

    from attn_modules._inputs import Inputs


@register_attention("favor")
class FavorAttention(KernelAttention):
    """Estimate softmax(q k^T / sqrt(K)) v by phi(q) (phi(k)^T v) / (phi(q) (phi(k)^T 1)).

    Use: for long sequences, in models trained with it. The error grows with |q + k|^2 / sqrt(K) in
        the exponent, so that only short rows are estimated well: with K = 64 and the default
        features the relative error is 2 % where elements of q and k have a standard deviation of
        0.25, 22 % where it is 0.5, and where it is 1 the mean of all values comes nearer.

    Shapes: as `Attention`; any Mq and Mkv.
    Cost: time O((Mq + Mkv) m (K + Kv)) for m = dim_features; memory beyond inputs, results and
        gradients O(m Kv) and the features of a thousand rows. Causal, chunk by chunk, no more.
    causal: query i sees keys j <= i, counted from the first of each; `prefill` and `step` decode.
    dropout: drops elements of the result.
    dim_features: default 2 floor(ceil(K (1 + log2 K)) / 2), and 2 at least, which needs `dim_head`.
    dim_head: K, a whole number; without it, features are drawn at the first call.
    iter_before_redraw: after how many calls of `forward` in training new features are drawn; None
        keeps those that it was made with. Calls of `prefill` and `step` never count, nor does what
        checkpointing computes again; it takes the features of the last call, so that where one
        layer is called several times before the backward pass, none may be drawn in between.
    feature_map_type: a `FeatureMapType` or its value; ReLU is a kernel of its own.
    normalize_inputs: scale rows of q and k to length sqrt(K) first, as `FeatureMap` says: another
        attention, of cosines, whose estimate has a bounded error.
    seed: of the features; None takes one from torch's global generator.
    Numerics: features are in float32, float64 for such inputs; their exponents are cut at +-28, and
        what |k|^2 contributes is relative to the running maximum, so that nothing overflows while
        m Mkv |v| is below 10^14, and no divisor is 0 but for a query that sees no key, which
        gives 0.
    Raises: ValueError if neither `dim_features` nor `dim_head` is given, or one does not fit.
    Source: Choromanski et al. 2020, arXiv:2009.14794.
    """

    def __init__(
        self,
        causal: bool = False,
        dropout: float = 0.0,
        dim_features: int | None = None,
        dim_head: int | None = None,
        iter_before_redraw: int | None = None,
        feature_map_type: FeatureMapType | str = FeatureMapType.SMReg,
        normalize_inputs: bool = False,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__(dropout, causal)
        if dim_head is not None:
            if isinstance(dim_head, float) and dim_head.is_integer():  # what a division gives
                dim_head = int(dim_head)
            check_counts("FavorAttention", dim_head=dim_head)
        if dim_features is None:
            if dim_head is None:
                raise ValueError("FavorAttention: expected dim_features or dim_head, got neither")
            dim_features = default_dim_features(dim_head)
        known = [kind.value for kind in FeatureMapType]
        if feature_map_type not in known:
            raise ValueError(
                f"FavorAttention: expected feature_map_type, one of {', '.join(known)}, got "
                f"{feature_map_type!r}"
            )
        self.dim_features = dim_features
        self.dim_head = dim_head
        self.iter_before_redraw = iter_before_redraw
        self.feature_map_type = FeatureMapType(feature_map_type)
        self.normalize_inputs = normalize_inputs
        self.feature_map = FEATURE_MAPS[self.feature_map_type](
            dim_features, dim_head, iter_before_redraw, normalize_inputs, seed=seed
        )

    def _kernel(self, dim_head: int, *, counted: bool) -> Kernel:
        feature_map = self.feature_map
        draw = feature_map.projection_of_call if counted else feature_map.projection
        return Kernel(feature_map.kind, draw(dim_head), dim_head**-0.25)

    def _prepare(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        if not self.normalize_inputs:
            return inputs.q, inputs.k
        keep = inputs.kept_rows()
        k = inputs.k if keep is None else inputs.k.masked_fill(~keep, 0.0)
        return self.feature_map.normalize(inputs.q), self.feature_map.normalize(k)


def default_dim_features(dim_head: int) -> int:
    """Return the least positive even number from K (1 + log2 K) - 1 on, such as 448 for 64."""
    return max(2 * (math.ceil(dim_head * (1 + math.log2(dim_head))) // 2), 2)
