"""Each registered mechanism in each of its forms, small enough to try every promise on it."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attn_modules import ATTENTION_REGISTRY, Attention, build_attention

Operands = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values: [B, H, M, K], or [B, M, K] where a mechanism deals with heads itself"""

BATCH, HEADS, LENGTH, WIDTH = 3, 2, 16, 8


@dataclass(frozen=True)
class MechanismCase:
    """A registered name, the options that make one form of it, and what that form promises."""

    name: str
    form: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    is_like_cropped: bool = True
    """Padding at the end gives what keys and queries give that are not there."""
    is_alike_for_heads: bool = True
    """One head alone gives what it gives among others."""
    is_zero_without_keys: bool = True
    """A query that sees no key gives 0."""
    takes_any_lengths: bool = True
    """There may be more queries than keys or fewer, if its class allows that."""
    takes_nan: bool = True
    """NaN gives NaN; other forms raise what linear algebra raises."""

    @property
    def id(self) -> str:
        return f"{self.name}-{self.form}" if self.form else self.name

    @functools.cached_property
    def constructor(self) -> type[Attention]:
        return ATTENTION_REGISTRY[self.name].constructor

    @property
    def has_heads(self) -> bool:
        """Whether operands are [B, H, M, K]; else they are [B, M, K]."""
        return self.constructor.supports_head_dimension

    @property
    def takes_masks(self) -> bool:
        """Whether it is exact; with fewer landmarks than rows, it is not."""
        is_exact = self.options.get("num_landmarks", LENGTH) >= LENGTH
        return self.constructor.supports_attention_mask and is_exact

    @property
    def is_causal(self) -> bool:
        return bool(self.options.get("causal"))

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's; some mechanisms require dropout."""
        return {"dropout": 0.0, **self.options}

    def config(self, **changes: Any) -> dict[str, Any]:
        return {"name": self.name, **self.arguments, **changes}

    def build(
        self, dtype: torch.dtype = torch.float32, drawn_from: int = 0, **changes: Any
    ) -> Attention:
        """Return the mechanism, in evaluation; `drawn_from` seeds torch beforehand."""
        # torch.manual_seed formats the whole stack for each kind of GPU that is not there.
        torch.default_generator.manual_seed(drawn_from)
        return build_attention(self.config(**changes)).eval().to(dtype)

    def operands(
        self, dtype: torch.dtype = torch.float32, queries: int = LENGTH, keys: int | None = None
    ) -> Operands:
        """Return normally distributed operands, the same each time."""
        generator = torch.Generator().manual_seed(0)
        heads = (HEADS,) if self.has_heads else ()
        lengths = (queries, keys or queries, keys or queries)
        q, k, v = (torch.randn(BATCH, *heads, m, WIDTH, generator=generator) for m in lengths)
        return q.to(dtype), k.to(dtype), v.to(dtype)


def fold(x: Tensor) -> Tensor:
    """Return [B, H, M, K] as [B * H, M, K]."""
    return x.flatten(0, 1)


def gradients(out: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of a loss that weighs every element of `out` differently.

    What does not count has zeros.
    """
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return torch.autograd.grad((out * weight).sum(), inputs, materialize_grads=True)


_GLOBAL = torch.arange(LENGTH).remainder(5).eq(1).unsqueeze(1)
_LAYOUT = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1]])

CASES = (
    MechanismCase("scaled_dot_product"),
    MechanismCase("scaled_dot_product", "causal", {"causal": True}),
    MechanismCase("local", "", {"window_size": 5}),
    MechanismCase("local", "causal", {"window_size": 4, "causal": True}),
    MechanismCase("global", "", {"attention_query_mask": _GLOBAL}),
    MechanismCase("global", "causal", {"attention_query_mask": _GLOBAL, "causal": True}),
    MechanismCase("random", "", {"r": 0.3}),
    MechanismCase("random", "causal", {"r": 0.3, "causal": True}),
    MechanismCase("random", "redrawn", {"r": 0.3, "constant_masking": False}),
    MechanismCase("linformer", "", {"seq_len": LENGTH, "k": 4}),
    MechanismCase("nystrom", "", {"num_heads": HEADS, "num_landmarks": 4}),
    MechanismCase(
        "nystrom",
        "pinv",
        {"num_heads": HEADS, "num_landmarks": 4, "use_razavi_pinverse": False},
        takes_nan=False,
    ),
    MechanismCase(
        "nystrom",
        "convolution",
        {"num_heads": HEADS, "num_landmarks": 4, "conv_kernel_size": 3},
        is_alike_for_heads=False,
        takes_any_lengths=False,
    ),
    MechanismCase(
        "nystrom",
        "causal",
        {"num_heads": HEADS, "num_landmarks": LENGTH, "causal": True},
    ),
    *(
        MechanismCase(
            "orthoformer", selection, {"num_landmarks": 4, "landmark_selection": selection}
        )
        for selection in ("orthogonal", "kmeans", "kmeans_spherical", "random")
    ),
    *(
        MechanismCase(
            "favor",
            form,
            {"dim_head": WIDTH, "dim_features": 16, "feature_map_type": feature_map, **options},
        )
        for feature_map in ("sm_reg", "sm_hyp", "sm_orf")
        for form, options in ((feature_map, {}), (f"{feature_map}-causal", {"causal": True}))
    ),
    MechanismCase("linear"),
    MechanismCase("linear", "causal", {"causal": True}),
    MechanismCase("blocksparse", "", {"layout": _LAYOUT, "block_size": 4}),
    MechanismCase("blocksparse", "causal", {"layout": _LAYOUT, "block_size": 4, "causal": True}),
    MechanismCase(
        "blocksparse",
        "heads",
        {"layout": torch.stack([_LAYOUT, _LAYOUT.T]), "block_size": 4},
        is_alike_for_heads=False,
    ),
    MechanismCase("big_bird", "", {"block_size": 2}, is_like_cropped=False),
    MechanismCase("big_bird", "causal", {"block_size": 2, "causal": True}),
    MechanismCase("fourier_mix", is_like_cropped=False),
    MechanismCase("lambda", "", {"dim_head": WIDTH, "seq_len": LENGTH}),
    MechanismCase("pooling", is_like_cropped=False),
    MechanismCase(
        "visual", "", {"dim_model": WIDTH}, is_like_cropped=False, is_zero_without_keys=False
    ),
    *(
        MechanismCase(
            "compositional",
            form,
            {"dim_model": WIDTH, "num_heads": HEADS, **options},
            is_zero_without_keys=False,
        )
        for form, options in (
            ("", {}),
            ("causal", {"causal": True}),
            ("rules", {"qk_rule": True, "num_rules": 4}),
            ("nonlinear", {"nonlinear": True, "q_compose": True}),
        )
    ),
)
