"""`LearnedRelativePositionalEncoding`: a learned row for each distance up to a limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from attn_continual.returnn.dim import Dim, as_dim
from attn_continual.returnn.distances import Distances, tagged
from attn_continual.returnn.sinusoids import floating_dtype

if TYPE_CHECKING:
    from attn_continual.returnn.tagged_tensor import TaggedTensor


class LearnedRelativePositionalEncoding(nn.Module):
    """Look up the row of each distance of a key from a query, clipped to the first and the last.

    Parameters: `pos_emb` [2 clipping + 1, F]; [clipping + 1, F] if `causal`; 0 at first. Row
        `clipping` is that of the distance 0.
    feat_dim: F.
    clipping: the largest distance with a row of its own.
    dtype: of the parameter; default torch's default dtype.
    causal: no key is after its query; those that are share the row of 0.
    Source: Shaw et al. 2018, arXiv:1803.02155, section 3.2.
    """

    def __init__(
        self,
        feat_dim: int | Dim,
        *,
        clipping: int = 16,
        dtype: str | torch.dtype | None = None,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if clipping < 0:
            raise ValueError(
                f"LearnedRelativePositionalEncoding: expected clipping of 0 or more, got {clipping}"
            )
        self.feat_dim = as_dim(feat_dim, "features")
        self._speaks_of_dims = isinstance(feat_dim, Dim)
        self.clipping = clipping
        self.causal = causal
        self.clipped_spatial_dim = Dim(
            (1 if causal else 2) * clipping + 1, name="clipped distances"
        )
        kind = None if dtype is None else floating_dtype(dtype)
        rows = self.clipped_spatial_dim.size
        self.pos_emb = nn.Parameter(torch.zeros(rows, self.feat_dim.size, dtype=kind))

    def forward(
        self,
        spatial_dim: int | Dim | None = None,
        *,
        query_spatial_dim: int | Dim | None = None,
        key_value_spatial_dim: int | Dim | None = None,
        query_offset: int | Tensor | TaggedTensor | None = None,
    ) -> tuple[Tensor, int] | tuple[TaggedTensor, Dim]:
        """Return a row for every distance, and how many there are.

        See `relative_positional_encoding`, also for the dims.
        """
        distances = Distances.between(
            type(self).__name__,
            spatial_dim,
            query_spatial_dim,
            key_value_spatial_dim,
            query_offset,
            self.pos_emb.device,
        )
        return distances.with_tags(self.rows(distances.values), self._features(distances))

    def full_matrix(
        self,
        *,
        query_spatial_dim: int | Dim,
        key_value_spatial_dim: int | Dim,
        query_offset: int | Tensor | TaggedTensor | None = None,
    ) -> Tensor | TaggedTensor:
        """Return the row of each query and key, [Mq, Mkv, F], which is large: see `forward`."""
        distances = Distances.of_pairs(
            type(self).__name__,
            query_spatial_dim,
            key_value_spatial_dim,
            query_offset,
            self.pos_emb.device,
        )
        table = self.rows(distances.values)
        if not distances.are_tagged:
            return table
        return tagged(table, query_offset, [*distances.dims, self.feat_dim])

    def rows(self, distances: Tensor) -> Tensor:
        """Return the rows [..., F] of distances int64 [...]."""
        last = 0 if self.causal else self.clipping
        return self.pos_emb[distances.clamp(-self.clipping, last) + self.clipping]

    def _features(self, distances: Distances) -> int | Dim:
        uses_dims = distances.are_tagged or self._speaks_of_dims
        return self.feat_dim if uses_dims else self.feat_dim.size
