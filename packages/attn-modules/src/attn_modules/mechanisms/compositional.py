"""Compositional attention: every head's search goes with every rule's retrieval."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from attn_modules._inputs import attend, kept_by_any_head, read_inputs
from attn_modules.attention import Attention
from attn_modules.input_projection import InputProjection, InputProjectionConfig
from attn_modules.registry import register_attention
from attn_ops import LowerTriangularMask
from attn_ops.scalars import check_counts

if TYPE_CHECKING:
    from attn_modules.attention_mask import AttentionMask


@register_attention("compositional")
class CompositionalAttention(Attention):
    """Let each head choose, for each query, how to mix what it would retrieve by each rule.

    With S = num_heads searches and R = num_rules retrievals,
        A_sr = softmax(Q_s K_s^T / sqrt(dim_head) + mask) V_r
        out  = W_o concat over s of (sum over r of softmax over r of score(query, A_sr)) A_sr
    where score is q_s . k_r / sqrt(dim_selection) with q_s = value_q(query), k_r = value_k(A_sr)
    if `qk_rule`; else a network of concat(A_sr, q_s): linear, or with one hidden ReLU layer if
    `nonlinear`. The linear one gives every rule of a search the same share of q_s, which therefore
    cancels.

    Shapes: q [B, Mq, dim_model]; k, v [B, Mkv, dim_model]; result [B, Mq, dim_model]. Masks as
        `Attention`, H being S.
    Cost: time O(S Mq Mkv (dim_head + dim_attn)), memory O(Mq S dim_attn).
    dim_attn: R times the width of a retrieval; default: dim_model.
    num_rules: R; default: num_heads.
    dim_selection: width of q_s and k_r; default: dim_model // num_heads.
    dim_key: S times dim_head; default: dim_model.
    dim_value: the same as dim_attn, under xFormers' name for the projected values.
    dropout: the probability of dropping a search's probability, for all rules alike.
    qk_rule, nonlinear: what score is.
    q_compose: q_s comes of the head's own query, Q_s / sqrt(dim_head), not of the unprojected one.
    in_proj_container: a module that is called as an `InputProjection`, instead of one made here.
    use_separate_proj_weight: False lets query, key and value share one weight.
    bias: whether the linear maps have one.
    causal: query i sees keys j <= i, counted from the first of each.
    A query that sees no key retrieves 0, of which `out_proj` leaves its bias.
    state_dict: `in_proj_container` (as `InputProjection`), `out_proj`, `value_q`, and `value_k` or
        `score_network`, the names that xFormers uses.
    Raises: ValueError if a count is no int of 1 or more, or widths do not divide, or contradict
        each other.
    Source: Mittal et al. 2021, arXiv:2110.09419, section 3.
    """

    requires_skip_multi_head = True
    supports_key_padding_mask = True

    def __init__(
        self,
        dim_model: int,
        num_heads: int,
        dim_attn: int | None = None,
        num_rules: int | None = None,
        dim_selection: int | None = None,
        dim_key: int | None = None,
        dim_value: int | None = None,
        dropout: float = 0.0,
        qk_rule: bool = False,
        nonlinear: bool = False,
        q_compose: bool = False,
        in_proj_container: nn.Module | None = None,
        use_separate_proj_weight: bool = False,
        bias: bool = True,
        causal: bool = False,
    ) -> None:
        super().__init__(dropout)
        self.dim_model = dim_model
        self.num_heads = num_heads
        self.num_rules = num_heads if num_rules is None else num_rules
        counts = {"dim_model": dim_model, "num_heads": num_heads, "num_rules": self.num_rules}
        check_counts("CompositionalAttention", **counts)
        self.dim_key = dim_model if dim_key is None else dim_key
        self.dim_attn = _first_of(dim_attn, dim_value, dim_model)
        self._check_widths(dim_value)
        self.dim_selection = dim_model // num_heads if dim_selection is None else dim_selection
        check_counts("CompositionalAttention", dim_selection=self.dim_selection)
        self.dim_head = self.dim_key // num_heads
        self.value_dim = self.dim_attn // self.num_rules
        self.qk_rule = qk_rule
        self.nonlinear = nonlinear
        self.q_compose = q_compose
        self.causal = causal
        key_params = InputProjectionConfig(dim_model, self.dim_key, bias)
        value_params = InputProjectionConfig(dim_model, self.dim_attn, bias)
        if in_proj_container is None:
            in_proj_container = InputProjection(
                key_params, key_params, value_params, use_separate_proj_weight
            )
        self.in_proj_container = in_proj_container
        self._make_scores(bias)
        self.out_proj = nn.Linear(num_heads * self.value_dim, dim_model, bias=bias)
        self._reset_parameters()

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        att_mask: Tensor | AttentionMask | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the chosen mixtures, projected; see `Attention.forward`."""
        self._check_inputs(q, k, v)
        if key_padding_mask is not None:
            # NaN in padding would reach the weights' gradients.
            kept = kept_by_any_head("CompositionalAttention", key_padding_mask, k, self.num_heads)
            k, v = (x.masked_fill(~kept.unsqueeze(-1), 0.0) for x in (k, v))
        query, key, value = self.in_proj_container(q, k, v)
        heads = (self.num_heads, self.dim_head)
        value_of_each_head = value.unsqueeze(1).expand(-1, self.num_heads, -1, -1)
        inputs = read_inputs(
            self,
            query.unflatten(-1, heads).transpose(1, 2),
            key.unflatten(-1, heads).transpose(1, 2),
            value_of_each_head,
            att_mask,
            key_padding_mask,
        )
        # All rules of a search have its probabilities: one call with their values side by side.
        retrieved = attend(
            inputs.q,
            inputs.k,
            inputs.v,
            pattern=LowerTriangularMask() if self.causal else None,
            bias=inputs.bias(),
            p=self.active_dropout,
        ).unflatten(-1, (self.num_rules, self.value_dim))
        shares = self._score(q, inputs.q, retrieved).softmax(dim=3)
        chosen = (shares * retrieved).sum(dim=3)
        return self.out_proj(chosen.flatten(2))

    def _score(self, unprojected: Tensor, query: Tensor, retrieved: Tensor) -> Tensor:
        """Return the score of each rule, [B, Mq, S, R, 1].

        Shapes: unprojected [B, Mq, dim_model]; query [B, Mq, S, dim_head]; retrieved
        [B, Mq, S, R, value_dim].
        """
        if self.q_compose:
            selecting = self.value_q(query * self.dim_head**-0.5)
        else:
            selecting = self.value_q(unprojected).unflatten(-1, (self.num_heads, -1))
        if self.qk_rule:
            selecting = (selecting * self.dim_selection**-0.5).unsqueeze(-1)
            return self.value_k(retrieved) @ selecting
        selecting = selecting.unsqueeze(3).expand(-1, -1, -1, self.num_rules, -1)
        return self.score_network(torch.cat((retrieved, selecting), dim=-1))

    def _make_scores(self, bias: bool) -> None:
        """Make what scores the retrievals."""
        width = self.dim_selection
        if self.q_compose:
            self.value_q = nn.Linear(self.dim_head, width, bias=bias)
        else:
            self.value_q = nn.Linear(self.dim_model, width * self.num_heads, bias=bias)
        if self.qk_rule:
            self.value_k = nn.Linear(self.value_dim, width, bias=bias)
        elif self.nonlinear:
            self.score_network = nn.Sequential(
                nn.Linear(width + self.value_dim, width, bias=bias),
                nn.ReLU(),
                nn.Linear(width, 1, bias=bias),
            )
        else:
            self.score_network = nn.Linear(width + self.value_dim, 1, bias=bias)

    def _reset_parameters(self) -> None:
        gain = 1 / math.sqrt(2) if self.qk_rule else 1.0
        nn.init.xavier_uniform_(self.value_q.weight, gain=gain)
        for module in (self.value_k,) if self.qk_rule else self.score_network.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, gain=gain)
        nn.init.xavier_uniform_(self.out_proj.weight)
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)

    def _check_widths(self, dim_value: int | None) -> None:
        heads, rules = self.num_heads, self.num_rules
        if self.dim_key % heads or self.dim_attn % rules:
            raise ValueError(
                "CompositionalAttention: expected dim_key to be a multiple of num_heads and "
                "dim_attn one of num_rules, where both widths default to dim_model, got "
                f"dim_key={self.dim_key}, num_heads={heads}, dim_attn={self.dim_attn} and "
                f"num_rules={rules}"
            )
        if dim_value not in (None, self.dim_attn):
            raise ValueError(
                "CompositionalAttention: expected dim_value to be dim_attn, or one of them alone, "
                f"got dim_value={dim_value} and dim_attn={self.dim_attn}"
            )

    def _check_inputs(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        fits = all(x.dim() == 3 and x.shape[-1] == self.dim_model for x in (q, k, v))
        if not fits or k.shape != v.shape or q.shape[0] != k.shape[0]:
            raise ValueError(
                f"CompositionalAttention: expected q, k and v [B, M, {self.dim_model}], with one B "
                f"and as many keys as values, got {list(q.shape)}, {list(k.shape)} and "
                f"{list(v.shape)}"
            )


def _first_of(*widths: int | None) -> int:
    return next(width for width in widths if width is not None)
