"""Orthoformer: attention by way of a few landmarks, chosen to be unlike each other."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from attn_modules._inputs import Inputs, attend, read_inputs, refuse_mask
from attn_modules._landmark_selection import Candidates, cluster, draw, pick_orthogonal, take
from attn_modules.attention import Attention
from attn_modules.mechanisms.scaled_dot_product import ScaledDotProduct
from attn_modules.registry import register_attention
from attn_ops.scalars import check_counts

if TYPE_CHECKING:
    from attn_modules.attention_mask import AttentionMask


class LandmarkSelection(str, Enum):
    """How landmarks are chosen among the rows.

    Orthogonal = "orthogonal": one after the other, the row least parallel to those chosen before;
        the first is drawn.
    KMeans = "kmeans": the means of clusters by distance.
    KMeans_Spherical = "kmeans_spherical": the means of clusters by angle.
    Random = "random": drawn without replacement.
    """

    Orthogonal = "orthogonal"
    KMeans = "kmeans"
    KMeans_Spherical = "kmeans_spherical"
    Random = "random"


@register_attention("orthoformer")
class OrthoFormerAttention(Attention):
    """Compute P(q, l) P(l, k) v, where P(q, k) = softmax(q k^T / sqrt(K)) and l are landmarks.

    Where there are no more queries or keys than landmarks, attention is exact, which costs less.
    Dropout drops elements of the result. Landmarks pass no gradient on, as in the authors' code.

    Shapes: as `Attention`; m landmarks.
    Cost: time O((Mq + Mkv) m K), memory beyond inputs and outputs O(Mq + m K) per head, and a
        copy of the rows that landmarks are chosen from where they are of a short dtype, of both
        q and k, or clustered.
    subsample_fraction: chooses among this part of the rows only, or among m if those are more.
    landmark_selection: a `LandmarkSelection` or its value.
    landmarks_from: chooses among the queries, as the authors' code does, or among queries and
        keys, as the paper says.
    generator: draws the `seed`; default: torch's global one.
    State: `seed`, from which and from the places of the rows all that is random follows: calls
    repeat themselves, in training too, and do not touch torch's generators.
    Padded rows are never chosen, and padding at the end gives what its absence gives where all
    rows are chosen among. As many queries as keys are taken to be padded alike. `att_mask` is
    honoured where attention is exact, and otherwise refused.
    Raises: ValueError if an argument is not one of the above; NotImplementedError if called with
        `att_mask` and more queries and keys than landmarks.
    Source: Patrick et al. 2021, arXiv:2106.05392, section 3.2 and algorithm 1.
    """

    supports_head_dimension = True
    supports_key_padding_mask = True

    seed: Tensor

    def __init__(
        self,
        dropout: float,
        num_landmarks: int = 32,
        subsample_fraction: float = 1.0,
        landmark_selection: LandmarkSelection | str = LandmarkSelection.Orthogonal,
        *,
        landmarks_from: Literal["queries", "queries_and_keys"] = "queries",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(dropout)
        check_counts("OrthoFormerAttention", num_landmarks=num_landmarks)
        if not 0.0 < subsample_fraction <= 1.0:
            raise ValueError(
                "OrthoFormerAttention: expected subsample_fraction in (0, 1], got "
                f"{subsample_fraction}"
            )
        known = [selection.value for selection in LandmarkSelection]
        if landmark_selection not in known:
            raise ValueError(
                f"OrthoFormerAttention: expected landmark_selection, one of {', '.join(known)}, "
                f"got {landmark_selection!r}"
            )
        if landmarks_from not in ("queries", "queries_and_keys"):
            raise ValueError(
                "OrthoFormerAttention: expected landmarks_from 'queries' or 'queries_and_keys', "
                f"got {landmarks_from!r}"
            )
        self.num_landmarks = num_landmarks
        self.subsample_fraction = subsample_fraction
        self.landmark_selection = LandmarkSelection(landmark_selection)
        self.landmarks_from = landmarks_from
        self.register_buffer("seed", torch.randint(2**31, (), generator=generator))
        self.exact = ScaledDotProduct()

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        att_mask: Tensor | AttentionMask | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the attended values; see `Attention.forward`."""
        if min(q.shape[-2], k.shape[-2]) <= self.num_landmarks:
            out = self.exact(q, k, v, att_mask, key_padding_mask)
        else:
            refuse_mask("OrthoFormerAttention", att_mask, self.num_landmarks, q, k)
            inputs = read_inputs(self, q, k, v, None, key_padding_mask)
            out = inputs.restore(self._approximate(inputs))
        return nn.functional.dropout(out, self.dropout, self.training)

    def _approximate(self, inputs: Inputs) -> Tensor:
        """Return [B, Mq, H, Kv], by two calls of attention."""
        # Autocast must not choose other landmarks than would be chosen without it.
        with torch.no_grad(), torch.autocast(inputs.q.device.type, enabled=False):
            landmarks, used = self._landmarks(self._candidates(inputs))
            landmarks = landmarks.transpose(1, 2).to(inputs.q.dtype)
        attended = attend(landmarks, inputs.k, inputs.v, pattern=None, bias=inputs.keep, p=0.0)
        bias = None if used is None else used.unsqueeze(2)
        return attend(inputs.q, landmarks, attended, pattern=None, bias=bias, p=0.0)

    def _candidates(self, inputs: Inputs) -> Candidates:
        rows, keep = inputs.q, inputs.keep
        if keep is not None:
            keep = keep.squeeze(2)
            if inputs.q.shape[1] != inputs.k.shape[1]:
                keep = None if self.landmarks_from == "queries" else keep
        if self.landmarks_from == "queries_and_keys":
            rows = torch.cat((rows, inputs.k.to(rows.dtype)), 1)
            if keep is not None:
                queries = inputs.q.shape[1]
                of_queries = keep if queries == keep.shape[-1] else torch.ones_like(keep[..., :1])
                of_queries = of_queries.expand(*keep.shape[:2], queries)
                keep = torch.cat((of_queries, keep), -1)
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        candidates = Candidates(wide.transpose(1, 2), keep)
        if self.subsample_fraction == 1.0:
            return candidates
        count = max(int(self.subsample_fraction * rows.shape[1]), self.num_landmarks)
        return take(candidates, draw(candidates, count, self.seed + 1))

    def _landmarks(self, candidates: Candidates) -> tuple[Tensor, Tensor | None]:
        """Return [B, H, m, K], and bool [B, H, m] where some may be no landmarks."""
        selection, count = self.landmark_selection, self.num_landmarks
        if selection == LandmarkSelection.Orthogonal:
            return take(candidates, pick_orthogonal(candidates, count, self.seed))
        drawn = draw(candidates, count, self.seed)
        if selection == LandmarkSelection.Random:
            return take(candidates, drawn)
        return cluster(candidates, drawn, by_angle=selection == LandmarkSelection.KMeans_Spherical)

    def extra_repr(self) -> str:
        """Return what `print` shows between the brackets."""
        return (
            f"num_landmarks={self.num_landmarks}, "
            f"landmark_selection={self.landmark_selection.value!r}, {super().extra_repr()}"
        )
