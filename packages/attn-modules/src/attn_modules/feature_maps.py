"""Random feature maps: products of two rows' features estimate the kernel exp(q . k / sqrt(K))."""

from __future__ import annotations

import hashlib
import math
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from attn_modules._features.arithmetic import Kind, features, log_weights
from attn_ops.scalars import check_counts

if TYPE_CHECKING:
    from collections.abc import Mapping


class FeatureMapType(str, Enum):
    """The names of the feature maps; each stands for the class of that description.

    SMOrf = "sm_orf": `SMOrf`, an unbiased estimate of softmax.
    SMHyp = "sm_hyp": `SMHyperbolic`, unbiased, of half as many vectors.
    SMReg = "sm_reg": `SMReg`, of less variance and slightly biased; the default of `favor`.
    ReLU = "relu": `ReLU`, another kernel than softmax's.
    """

    SMOrf = "sm_orf"
    SMHyp = "sm_hyp"
    SMReg = "sm_reg"
    ReLU = "relu"


class FeatureMap(nn.Module):
    """Map rows x [..., K] to positive features phi(x) [..., dim_features].

    The vectors omega that rows are projected on are random: in blocks of K orthogonal ones, each
    uniform over the sphere in its direction. They are a buffer, drawn on the CPU in float64, so
    that one seed gives the same vectors on every device.

    dim_features: how many features a row gets.
    dim_head: K; None leaves the drawing to the first call, which no compiler can trace.
    iter_before_redraw: how many calls of `projection_of_call` in training share their vectors;
        None keeps them for ever. Calls in evaluation, and those that checkpointing makes again in a
        backward pass, neither count nor redraw. The count and the seed are buffers too, so a
        restored model draws what the saved one would have drawn.
    normalize_inputs: scale rows to length sqrt(K) first, which bounds the scores and with them the
        error of their estimates: Henry et al. 2020, arXiv:2010.04245.
    seed: of all drawings; None takes one from torch's global generator.
    Raises: ValueError if a number is not positive, or `dim_features` is odd where a vector gives
        two features.
    Source: Choromanski et al. 2020, arXiv:2009.14794, lemma 1 and section 2.4.
    """

    kind: ClassVar[Kind]
    """The arithmetic, in `_features.arithmetic`."""
    features_per_vector: ClassVar[int] = 1
    has_random_lengths: ClassVar[bool] = True
    """Vectors are as long as Gaussian ones, chi(K); else all have length sqrt(K)."""

    features: Tensor
    """The vectors, a column each: [K, dim_features / features_per_vector]; K is 0 before they are
    drawn."""
    num_calls: Tensor
    """int64 []: the calls that counted."""
    seed: Tensor
    """int64 []."""

    def __init__(
        self,
        dim_features: int,
        dim_head: int | None = None,
        iter_before_redraw: int | None = None,
        normalize_inputs: bool = False,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        who = type(self).__name__
        optional = {"dim_head": dim_head, "iter_before_redraw": iter_before_redraw}
        given = {name: number for name, number in optional.items() if number is not None}
        check_counts(who, dim_features=dim_features, **given)
        if dim_features % self.features_per_vector:
            raise ValueError(
                f"{who}: expected an even number dim_features, as a vector gives two features, "
                f"got {dim_features}"
            )
        self.dim_features = dim_features
        self.iter_before_redraw = iter_before_redraw
        self.normalize_inputs = normalize_inputs
        drawn = torch.randint(2**62, ()) if seed is None else torch.tensor(seed)
        self.register_buffer("seed", drawn)
        self.register_buffer("num_calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("features", torch.empty(0, dim_features // self.features_per_vector))
        if dim_head is not None:
            self._draw(dim_head)

    def projection_of_call(self, dim_head: int) -> Tensor:
        """Return the vectors [K, ...] for one call, which queries and keys share.

        In training, draws new ones first if it is time.
        Raises: ValueError if they were drawn for another K.
        """
        projection = self.projection(dim_head)
        if self.training and self.iter_before_redraw is not None:
            # New tensors, since the backward passes of earlier calls may still need the old ones.
            self.features, self.num_calls = torch.ops.attn_modules.count_and_redraw(
                projection,
                self.seed,
                self.num_calls,
                self.iter_before_redraw,
                self.has_random_lengths,
            )
        return self.features

    def projection(self, dim_head: int) -> Tensor:
        """Return the vectors [K, ...] as they are.

        Raises: ValueError if they were drawn for another K, or are to be drawn in a graph.
        """
        if self.features.shape[0] == 0:
            # Unless the graph is to be whole, torch.compile goes on from here without one.
            if torch.compiler.is_compiling():
                raise ValueError(
                    f"{type(self).__name__}: expected features that are drawn, got none: give "
                    "dim_head, or call once before compiling"
                )
            self._draw(dim_head)
        if self.features.shape[0] != dim_head:
            raise ValueError(
                f"{type(self).__name__}: expected rows as wide as dim_head="
                f"{self.features.shape[0]}, got {dim_head}"
            )
        return self.features

    def normalize(self, x: Tensor) -> Tensor:
        """Return rows x [..., K] scaled to length sqrt(K) if inputs are to be normalized."""
        if not self.normalize_inputs:
            return x
        return functional.rms_norm(x, x.shape[-1:], eps=1e-12 if x.dtype.itemsize > 2 else 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Return phi(x) [..., dim_features], where phi(q) . phi(k) estimates exp(q . k / sqrt(K)).

        Attention does not call this, as features of long rows underflow.
        """
        scaled = self.normalize(x) * x.shape[-1] ** -0.25
        phi = features(self.kind, scaled, self.projection(x.shape[-1]).to(x.dtype))
        log_weight = log_weights(self.kind, scaled)
        if log_weight is not None:
            phi = phi * log_weight.exp().unsqueeze(-1)
        return phi * self.dim_features**-0.5

    def _draw(self, dim_head: int) -> None:
        count = self.features.shape[1]
        if self.seed.is_meta:
            self.features = self.features.new_empty(dim_head, count)
            return
        # What is made in inference mode could not be trained with afterwards.
        with torch.inference_mode(False):
            vectors = draw_vectors(
                dim_head,
                count,
                random_lengths=self.has_random_lengths,
                generator=_generator(int(self.seed), 0),
            )
            self.features = vectors.to(self.features)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        saved = state_dict.get(f"{prefix}features")
        if saved is not None and self.features.shape[0] == 0:
            self.features = self.features.new_empty(saved.shape[0], self.features.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Return what `print` shows between the brackets."""
        return f"dim_features={self.dim_features}"


class SMOrf(FeatureMap):
    """phi(x) = exp(omega . x - |x|^2 / 2), for vectors of Gaussian lengths: unbiased."""

    kind = "positive"


class SMHyperbolic(FeatureMap):
    """phi(x) = exp(+-omega . x - |x|^2 / 2): two features of each vector of `SMOrf`, unbiased."""

    kind = "hyperbolic"
    features_per_vector = 2


class SMReg(SMHyperbolic):
    """`SMHyperbolic` for vectors of length sqrt(K): of less variance, slightly biased."""

    has_random_lengths = False


class ReLU(FeatureMap):
    """phi(x) = max(omega . x, 0) + 1e-3: another kernel than softmax's, not an estimate of it."""

    kind = "relu"
    has_random_lengths = False


FEATURE_MAPS: Final = {
    FeatureMapType.SMOrf: SMOrf,
    FeatureMapType.SMHyp: SMHyperbolic,
    FeatureMapType.SMReg: SMReg,
    FeatureMapType.ReLU: ReLU,
}


def draw_vectors(
    dim_head: int, count: int, *, random_lengths: bool, generator: torch.Generator
) -> Tensor:
    """Return random vectors as columns, float64 [dim_head, count], orthogonal in blocks.

    random_lengths: chi(dim_head), as of Gaussian vectors; else all of length sqrt(dim_head).
    Source: Yu et al. 2016, arXiv:1610.09072; Mezzadri 2006, arXiv:math-ph/0609050, for the signs.
    """
    blocks = math.ceil(count / dim_head)
    shape = (blocks, dim_head, dim_head)
    gaussian = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    q, r = torch.linalg.qr(gaussian)
    # QR is unique up to these signs, and as LAPACK chooses them Q is not uniform.
    directions = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    vectors = directions.transpose(0, 1).reshape(dim_head, -1)[:, :count]
    if not random_lengths:
        return (vectors * math.sqrt(dim_head)).contiguous()
    shape = (dim_head, count)
    gaussian = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return (vectors * gaussian.norm(dim=0)).contiguous()


def _generator(seed: int, drawing: int) -> torch.Generator:
    """Return the generator of one drawing; torch's own reads 32 bits of what it is seeded with."""
    digest = hashlib.blake2b(f"{seed} {drawing}".encode(), digest_size=4).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little"))


torch.library.define(
    "attn_modules::count_and_redraw",
    "(Tensor vectors, Tensor seed, Tensor num_calls, int period, bool random_lengths) "
    "-> (Tensor vectors, Tensor num_calls)",
)


@torch.library.impl("attn_modules::count_and_redraw", "CompositeExplicitAutograd")
def _count_and_redraw(
    vectors: Tensor, seed: Tensor, num_calls: Tensor, period: int, random_lengths: bool
) -> tuple[Tensor, Tensor]:
    """Return the vectors for the call after `num_calls` others, and how many calls there are then.

    A call that checkpointing computes again is neither counted nor redrawn for. That is asked here,
    in the one node of compiled graphs, which run forward and in a backward pass alike.
    """
    kept = vectors.clone(memory_format=torch.contiguous_format)
    if torch._C._current_graph_task_id() != -1:  # noqa: SLF001  torch has no public way
        return kept, num_calls.clone()
    drawing, since = divmod(int(num_calls), period)
    if since or not drawing:
        return kept, num_calls + 1
    dim_head, count = vectors.shape
    generator = _generator(int(seed), drawing)
    drawn = draw_vectors(dim_head, count, random_lengths=random_lengths, generator=generator)
    return drawn.to(vectors), num_calls + 1


@torch.library.register_fake("attn_modules::count_and_redraw")
def _vectors_and_count(
    vectors: Tensor, _seed: Tensor, num_calls: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    return vectors.new_empty(vectors.shape), num_calls.new_empty(())
