"""Self-attention by relative positions, over whole sequences and stepwise."""

from __future__ import annotations

from attn_continual.returnn.causal_self_attention import CausalSelfAttention
from attn_continual.returnn.relative_positions import RelativePositions
from attn_continual.returnn.self_attention import SelfAttention


class RelPosSelfAttention(RelativePositions, SelfAttention):
    """Attend from every place of a sequence to every place, by content and relative position.

    Arguments: see `RelativePositions`; calls: `SelfAttention`.
    """


class RelPosCausalSelfAttention(RelativePositions, CausalSelfAttention):
    """Attend to the places up to each query's, by content and relative position.

    Arguments: see `RelativePositions`, and `window`; calls and state: `CausalSelfAttention`. Any
    chunks of a sequence give what the whole gives.
    """
