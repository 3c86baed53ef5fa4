"""Nystrom attention: the matrix of probabilities rebuilt from those of a few landmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from attn_modules._inputs import Inputs, attend, read_inputs, refuse_mask
from attn_modules._pseudoinverse import pseudoinverse
from attn_modules._segments import segment_means
from attn_modules.attention import Attention
from attn_modules.mechanisms.scaled_dot_product import ScaledDotProduct
from attn_modules.registry import register_attention
from attn_ops import memory_efficient_attention
from attn_ops.scalars import check_counts

if TYPE_CHECKING:
    from attn_modules.attention_mask import AttentionMask


@register_attention("nystrom")
class NystromAttention(Attention):
    """Compute P(q, k~) P(q~, k~)^+ P(q~, k) v, where P(q, k) = softmax(q k^T / sqrt(K)).

    The landmarks q~ and k~ are the means of `num_landmarks` segments of the rows, in order, the
    last M % num_landmarks of them one row longer. Where there are no more queries or keys than
    landmarks, attention is exact, which costs less. Dropout drops elements of the result.

    Shapes: as `Attention`; m landmarks.
    Cost: time O((Mq + Mkv) m K + m^3), memory beyond inputs and outputs O(m K + m^2) per head,
        and a copy of q and k for the landmarks where there is padding or a short dtype.
    num_heads: H. Only a convolution needs it.
    landmark_pooling: makes the landmarks instead, [B * H, M, K] to [B * H, m, K], once of the
        queries and once of the keys, where padded rows are 0.
    causal: query i sees keys j <= i. Exact attention alone can do that: other lengths are refused.
    use_razavi_pinverse: inverts by `inv_iterations` steps; else by `torch.linalg.pinv`, whose large
        entries can make the result worse.
    inv_iterations: of the inverse, which regularise: small singular values, whose inverses would
        multiply the errors of landmarks, stay out of it. More steps come nearer to the inverse,
        and on trained models further from attention (`docs/approximation.md`). So none are added
        until they converge: bounds by their number alone hold for every matrix of probabilities,
        as `_pseudoinverse` says, and steps that rounding would undo are left out.
    pinverse_original_init: starts from the largest column sum of the whole batch, as first
        published: results depend on the other batch elements.
    v_skip_connection: its result for v [B, H, Mkv, Kv] is added to the attended values. When
        causal, it must keep to the past by itself.
    conv_kernel_size: adds instead a depthwise convolution of v along the sequence, as long as
        this, of any parity; when causal, over the rows up to each. State:
        `skip_connection.weight` [H, 1, conv_kernel_size, 1].
    Padded rows count nowhere: landmarks are means of the others, split among themselves, so that
    padding at the end gives what its absence gives. As many queries as keys are taken to be
    padded alike. `att_mask` is honoured where attention is exact, and otherwise refused.
    Numerics: landmarks and the inverse in float32, which the steps multiply errors by up to 22
        of; float64 inputs throughout in float64.
    Raises: ValueError if a count is not positive, or Mq != Mkv with something added from v;
        NotImplementedError if causal, or called with `att_mask`, with more queries and keys than
        landmarks.
    Source: Xiong et al. 2021, arXiv:2102.03902, eq. 13.
    """

    supports_head_dimension = True
    supports_key_padding_mask = True
    requires_separate_masks = True

    def __init__(
        self,
        dropout: float,
        num_heads: int,
        num_landmarks: int = 64,
        landmark_pooling: nn.Module | None = None,
        causal: bool = False,
        use_razavi_pinverse: bool = True,
        pinverse_original_init: bool = False,
        inv_iterations: int = 6,
        v_skip_connection: nn.Module | None = None,
        conv_kernel_size: int | None = None,
    ) -> None:
        super().__init__(dropout)
        counts = {"num_landmarks": num_landmarks, "inv_iterations": inv_iterations}
        optional = {"num_heads": num_heads, "conv_kernel_size": conv_kernel_size}
        counts |= {name: count for name, count in optional.items() if count is not None}
        check_counts("NystromAttention", **counts)
        self.num_heads = num_heads
        self.num_landmarks = num_landmarks
        self.landmark_pooling = landmark_pooling
        self.causal = causal
        self.use_razavi_pinverse = use_razavi_pinverse
        self.pinverse_original_init = pinverse_original_init
        self.inv_iterations = inv_iterations
        self.skip_connection = v_skip_connection
        if v_skip_connection is None and conv_kernel_size is not None:
            self.skip_connection = _SequenceConvolution(num_heads, conv_kernel_size, causal=causal)
        self.exact = ScaledDotProduct(causal=causal)

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
            inputs = read_inputs(self, q, k, v, None, key_padding_mask)
        else:
            self._refuse_causal(k.shape[-2])
            refuse_mask("NystromAttention", att_mask, self.num_landmarks, q, k)
            inputs = read_inputs(self, q, k, v, None, key_padding_mask)
            out = inputs.restore(self._approximate(inputs))
        if self.skip_connection is not None:
            out = out + self._skip(self.skip_connection, inputs).reshape(out.shape)
        return nn.functional.dropout(out, self.dropout, self.training)

    def _refuse_causal(self, keys: int) -> None:
        if self.causal:
            raise NotImplementedError(
                f"NystromAttention: expected at most num_landmarks={self.num_landmarks} keys when "
                f"causal, got {keys}: landmarks are means over the future too; use favor, local "
                "or scaled_dot_product, which can be causal, or more landmarks"
            )

    def _approximate(self, inputs: Inputs) -> Tensor:
        """Return [B, Mq, H, Kv], by two calls of attention and an inverse between them."""
        # The inverse multiplies errors, of which autocast would make those of a short dtype.
        with torch.autocast(inputs.q.device.type, enabled=False):
            dtype = inputs.q.dtype
            wide = torch.promote_types(dtype, torch.float32)
            q_kept = inputs.kept_rows() if inputs.q.shape[1] == inputs.k.shape[1] else None
            q_landmarks, q_used = self._landmarks(inputs.q, q_kept)
            k_landmarks, k_used = self._landmarks(inputs.k, inputs.kept_rows())
            attended = memory_efficient_attention(
                q_landmarks,
                inputs.k.to(dtype),
                inputs.v.to(dtype),
                inputs.keep,
                output_dtype=None if wide == torch.float64 else wide,
            )
            a = _probabilities(q_landmarks.to(wide), k_landmarks.to(wide), q_used, k_used)
            weights = (self._invert(a) @ attended.transpose(1, 2)).transpose(1, 2)
            bias = None if k_used is None else k_used.permute(0, 2, 3, 1)
            out = attend(
                inputs.q.to(wide), k_landmarks.to(wide), weights, pattern=None, bias=bias, p=0.0
            )
            return out.to(dtype)

    def _landmarks(self, rows: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return [B, m, H, K], and which stand for any row: bool [B or 1, m, H or 1, 1] or None."""
        if self.landmark_pooling is None:
            means, used = segment_means(rows, kept, self.num_landmarks)
            return means.to(rows.dtype), used
        if kept is not None:
            rows = rows.masked_fill(~kept, 0.0)
        pooled = self.landmark_pooling(rows.transpose(1, 2).flatten(0, 1))
        return pooled.unflatten(0, (rows.shape[0], rows.shape[2])).transpose(1, 2), None

    def _invert(self, a: Tensor) -> Tensor:
        if self.use_razavi_pinverse:
            return pseudoinverse(a, self.inv_iterations, shares_start=self.pinverse_original_init)
        return torch.linalg.pinv(a)

    def _skip(self, connection: nn.Module, inputs: Inputs) -> Tensor:
        """Return what is added to the attended values, [B, H, Mkv, Kv]."""
        batch, keys, heads, width = inputs.v.shape
        # Folded heads are as many as num_heads says, into whatever B and H a mask splits them.
        misfits = batch * heads % self.num_heads if inputs.is_folded else heads != self.num_heads
        if inputs.q.shape[1] != keys or misfits:
            raise ValueError(
                "NystromAttention: expected as many keys as queries, and heads by "
                f"num_heads={self.num_heads}, where a part of v is added to the result, got "
                f"{inputs.q.shape[1]} queries, {keys} keys, B={batch} and H={heads}"
            )
        kept = inputs.kept_rows()
        v = inputs.v if kept is None else inputs.v.masked_fill(~kept, 0.0)
        by_head = (batch * heads // self.num_heads, self.num_heads, keys, width)
        return connection(v.transpose(1, 2).reshape(by_head))

    def extra_repr(self) -> str:
        """Return what `print` shows between the brackets."""
        return f"num_landmarks={self.num_landmarks}, {super().extra_repr()}"


class _SequenceConvolution(nn.Conv2d):
    """A depthwise convolution along the sequence, [B, H, M, K] to [B, H, M, K].

    The window of row i begins size // 2 rows before it, and when causal ends at it.
    """

    def __init__(self, heads: int, size: int, *, causal: bool) -> None:
        padding = size - 1 if causal else size // 2
        super().__init__(heads, heads, (size, 1), padding=(padding, 0), groups=heads, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  what torch calls it
        if input.shape[-2] == 0:  # torch convolves no empty sequences
            return input
        rows, weight, heads = input, self.weight, self.groups
        if heads == 1:
            # oneDNN's gradient to the weight of a single channel, which is no depthwise
            # convolution to it, writes out of bounds where kernels are longer than sequences.
            rows, weight, heads = rows.expand(-1, 2, -1, -1), weight.expand(2, -1, -1, -1), 2
        out = nn.functional.conv2d(rows, weight, padding=self.padding, groups=heads)
        return out[:, : self.groups, : input.shape[-2]]


def _probabilities(q: Tensor, k: Tensor, q_used: Tensor | None, k_used: Tensor | None) -> Tensor:
    """Return softmax(q k^T / sqrt(K)) [B, H, mq, mk] of landmarks [B, m, H, K], 0 for unused."""
    scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * q.shape[-1] ** -0.5
    if k_used is not None:
        # Not -inf, by which a row without any key would be NaN and its gradient too.
        unused = ~k_used.permute(0, 2, 3, 1)
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(unused, lowest).softmax(-1).masked_fill(unused, 0.0)
    else:
        scores = scores.softmax(-1)
    return scores if q_used is None else scores.masked_fill(~q_used.transpose(1, 2), 0.0)
