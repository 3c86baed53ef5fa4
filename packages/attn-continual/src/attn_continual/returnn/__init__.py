"""RETURNN's frontend attention: torch tensors, or tagged ones under which its calls run as written.

Layers take sizes as ints or as `Dim`s. Tagged tensors are `Tensor` here, as in RETURNN.
"""

from attn_continual.returnn.causal_self_attention import (
    CausalSelfAttention,
    CausalSelfAttentionState,
)
from attn_continual.returnn.continual_self_attention import ContinualSelfAttention
from attn_continual.returnn.cross_attention import CrossAttention, EncoderState
from attn_continual.returnn.dim import Dim, batch_dim, single_step_dim
from attn_continual.returnn.dot_attention import AttentionFunc, dot_attention
from attn_continual.returnn.learned_positional_encoding import LearnedRelativePositionalEncoding
from attn_continual.returnn.positional_encoding import (
    relative_positional_encoding,
    sinusoidal_positional_encoding,
)
from attn_continual.returnn.relative_self_attention import (
    RelPosCausalSelfAttention,
    RelPosSelfAttention,
)
from attn_continual.returnn.self_attention import SelfAttention, SelfAttentionBase
from attn_continual.returnn.tagged_tensor import TaggedTensor as Tensor
from attn_continual.returnn.tagged_tensor import convert_to_tensor, replace_dim

__all__ = [
    "AttentionFunc",
    "CausalSelfAttention",
    "CausalSelfAttentionState",
    "ContinualSelfAttention",
    "CrossAttention",
    "Dim",
    "EncoderState",
    "LearnedRelativePositionalEncoding",
    "RelPosCausalSelfAttention",
    "RelPosSelfAttention",
    "SelfAttention",
    "SelfAttentionBase",
    "Tensor",
    "batch_dim",
    "convert_to_tensor",
    "dot_attention",
    "relative_positional_encoding",
    "replace_dim",
    "single_step_dim",
    "sinusoidal_positional_encoding",
]
