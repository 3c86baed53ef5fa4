"""Linear attention: weights are products of features that every row has by itself."""

from __future__ import annotations

from typing import Literal, get_args

from attn_modules.mechanisms._kernel_attention import Kernel, KernelAttention
from attn_modules.registry import register_attention

LinearFeatureMap = Literal["elu", "relu", "exp"]
"""elu: elu(x) + 1; relu: max(x, 0) + 1e-3; exp: exp(x)."""


@register_attention("linear")
class LinearAttention(KernelAttention):
    """Compute phi(q) (phi(k)^T v) / (phi(q) (phi(k)^T 1)), where phi acts on each element.

    Shapes: as `Attention`; any Mq and Mkv.
    Cost: time O((Mq + Mkv) K Kv), memory beyond inputs, results and gradients O(K Kv).
    causal: query i sees keys j <= i, counted from the first of each; `prefill` and `step` decode:
        as a recurrent network does, in time and memory that do not grow.
    dropout: drops elements of the result.
    feature_map: "elu", of the paper; "relu"; or "exp".
    Numerics: sums are in float32, in float64 for such inputs; exponents, of "exp" and of "elu", are
        cut at +-28. A query that sees no key gives 0.
    Raises: ValueError if `feature_map` is another.
    Source: Katharopoulos et al. 2020, arXiv:2006.16236, eqs. 7 to 12.
    """

    def __init__(
        self,
        dropout: float = 0.0,
        causal: bool = False,
        feature_map: LinearFeatureMap = "elu",
    ) -> None:
        super().__init__(dropout, causal)
        if feature_map not in get_args(LinearFeatureMap):
            raise ValueError(
                "LinearAttention: expected feature_map, one of "
                f"{', '.join(get_args(LinearFeatureMap))}, got {feature_map!r}"
            )
        self.feature_map: LinearFeatureMap = feature_map

    def _kernel(self, dim_head: int, *, counted: bool) -> Kernel:  # noqa: ARG002
        return Kernel(self.feature_map, None, 1.0)
