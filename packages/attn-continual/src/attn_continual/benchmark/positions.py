"""Attention by relative positions, forward and backward: against a score for every pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attn_continual.benchmark.literal import attend_by_looking_up, attend_by_shifting
from attn_continual.deberta import log_bucket_positions
from attn_continual.relative_attention import RelativeAttention
from attn_continual.returnn import (
    RelPosCausalSelfAttention,
    RelPosSelfAttention,
    relative_positional_encoding,
)
from attn_ops.benchmark.case import NO_TARGET, Contender, Contest, Peaks, Target
from attn_ops.benchmark.check import compare
from attn_ops.benchmark.memory import measure_peaks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

_FEW_ROWS = 32
_BUCKETS = 256


@dataclass(frozen=True)
class PositionCase(ABC):
    """A layer of `heads` heads over one float32 sequence, projections and all.

    Gradients are those of the outputs' weighted sum, for the sequence and every parameter, added to
    gradients that are there. Memory counts beside these, and beside what the forward returns.
    """

    rows: int
    width: int
    heads: int = 8
    target: Target = NO_TARGET

    dtype = torch.float32
    limit = None
    work = 0.0
    compares_threads = False

    @property
    def sizes(self) -> str:
        """Return the numbers that set this case apart."""
        return f"M{self.rows} E{self.width} H{self.heads}"

    def shrunk(self) -> Self:
        """Return the same case without a target, small enough to try everything in seconds."""
        return replace(self, rows=_FEW_ROWS, target=NO_TARGET)

    @abstractmethod
    def make_layer(self) -> nn.Module:
        """Return the layer, without dropout."""

    @abstractmethod
    def bind(self, layer: Any, *, is_ours: bool) -> Callable[[Tensor], Sequence[Tensor]]:  # noqa: ANN401  its own
        """Return the layer as a function of sequences [1, M, E], or its plain form."""

    def prepare(self) -> Contest:
        """Check outputs and gradients in float64, and bind both forms."""
        ours, plain = (Training(self, is_ours=is_ours) for is_ours in (True, False))
        exact = Training(self, is_ours=False, dtype=torch.float64)
        found = (form.results_and_gradients() for form in (ours, exact, plain))
        return Contest(
            Contender(ours), Contender(plain), compare(*found, factor=10), self.measure_peaks
        )

    def measure_peaks(self) -> Peaks:
        """Measure both forms, one after the other."""
        forms = [partial(Training, self, is_ours=is_ours) for is_ours in (True, False)]
        return Peaks(*measure_peaks(forms))


class Training:
    """A forward and its backward."""

    def __init__(
        self, case: PositionCase, *, is_ours: bool, dtype: torch.dtype = torch.float32
    ) -> None:
        layer = case.make_layer().to(dtype)
        self._attend = case.bind(layer, is_ours=is_ours)
        generator = torch.Generator().manual_seed(0)
        shape = (2, 1, case.rows, case.width)
        self._x, self._grad_out = torch.randn(shape, generator=generator).to(dtype)
        self._leaves = [self._x.requires_grad_(), *layer.parameters()]
        for leaf in self._leaves:
            leaf.grad = torch.zeros_like(leaf)

    def __call__(self) -> list[Tensor]:
        """Add to the gradients, and return the results."""
        results = list(self._attend(self._x))
        results[0].backward(self._grad_out)
        return results

    def results_and_gradients(self) -> list[Tensor]:
        """Return the results and all gradients of a first call."""
        return [*self(), *(leaf.grad.clone() for leaf in self._leaves if leaf.grad is not None)]


@dataclass(frozen=True)
class RelPosCase(PositionCase):
    """RETURNN's layer with all of Transformer-XL's parameters."""

    is_causal: bool = False

    baseline = "rel-shift in torch"

    @property
    def name(self) -> str:
        """Return what sets this case apart."""
        return f"rel-pos{' causal' if self.is_causal else ''} {self.sizes}"

    def make_layer(self) -> nn.Module:
        """Return the layer, without dropout."""
        torch.manual_seed(0)
        cls = RelPosCausalSelfAttention if self.is_causal else RelPosSelfAttention
        return cls(
            self.width,
            self.width,
            key_dim_total=self.width,
            value_dim_total=self.width,
            num_heads=self.heads,
            att_dropout=0.0,
        )

    def bind(self, layer: Any, *, is_ours: bool) -> Callable[[Tensor], Sequence[Tensor]]:  # noqa: ANN401
        """Return the layer as a function of sequences, or its plain form with the encodings."""
        if is_ours:
            return (lambda x: layer(x)[:1]) if self.is_causal else (lambda x: (layer(x),))
        dtype = layer.qkv.weight.dtype
        encodings, _ = relative_positional_encoding(self.rows, self.width, dtype=dtype)
        assert isinstance(encodings, Tensor)  # noqa: S101  of ints, not of dims
        encodings = encodings[: self.rows] if self.is_causal else encodings
        attend = partial(attend_by_shifting, layer, is_causal=self.is_causal)
        return lambda x: (attend(x, encodings),)


@dataclass(frozen=True)
class RelativeAttentionCase(PositionCase):
    """EDS' layer with all its terms: over a text in DeBERTa-v3's buckets, or over places of a page.

    Of a text the distance alone counts, which the layer finds out; of a page every pair does.
    """

    coordinates: int = 1
    keeps_logits: bool = True

    baseline = "lookups in torch"

    @property
    def name(self) -> str:
        """Return what sets this case apart."""
        form = "" if self.coordinates == 1 else f" {self.coordinates}D"
        return f"c2c+c2p+p2c{form}{'' if self.keeps_logits else ' without logits'} {self.sizes}"

    def make_layer(self) -> nn.Module:
        """Return the layer, without dropout."""
        torch.manual_seed(0)
        embedding = nn.Parameter(torch.randn(2 * _BUCKETS, self.width))
        return RelativeAttention(
            self.width,
            self.heads,
            position_embedding=embedding,
            n_coordinates=self.coordinates,
        )

    def bind(self, layer: Any, *, is_ours: bool) -> Callable[[Tensor], Sequence[Tensor]]:  # noqa: ANN401
        """Return the layer as a function of sequences, or its plain form."""
        positions = self._relative_positions()
        if is_ours and self.keeps_logits:
            return lambda x: layer(x, None, x, relative_positions=positions)
        if is_ours:
            return lambda x: [layer(x, None, x, relative_positions=positions, need_logits=False)]
        results = 2 if self.keeps_logits else 1
        return lambda x: attend_by_looking_up(layer, x, positions)[:results]

    def _relative_positions(self) -> Tensor:
        """Return those of all pairs, int64 [1, M, M, coordinates]."""
        if self.coordinates == 1:
            return log_bucket_positions(self.rows, self.rows, _BUCKETS, 2 * _BUCKETS)
        generator = torch.Generator().manual_seed(1)
        places = torch.randint(_BUCKETS, (1, self.rows, self.coordinates), generator=generator)
        return places[:, None] - places[:, :, None]
