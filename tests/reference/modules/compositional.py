"""Compositional attention, one search, one retrieval and one query at a time."""

import torch

from reference.modules.dense_attention import attend


def compose(module, q, k, v, keep=None):
    """Return what `module` must give for q [B, Mq, E], k and v [B, Mkv, E].

    module: gives the sizes and the state_dict. keep: bool, broadcastable to [B, S, Mq, Mkv].
    """
    state = module.state_dict(keep_vars=True)

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    searches, rules = module.num_heads, module.num_rules
    queries = linear(q, "in_proj_container.q_proj").chunk(searches, -1)
    keys = linear(k, "in_proj_container.k_proj").chunk(searches, -1)
    values = linear(v, "in_proj_container.v_proj").chunk(rules, -1)
    keep = torch.ones(1, 1, 1, 1, dtype=torch.bool) if keep is None else keep
    keep = keep.expand(q.shape[0], searches, q.shape[1], k.shape[1])
    chosen = []
    for s in range(searches):
        retrieved = [attend(queries[s], keys[s], value, keep[:, s]) for value in values]
        if module.q_compose:
            selecting = linear(queries[s] / module.dim_head**0.5, "value_q")
        else:
            selecting = linear(q, "value_q").chunk(searches, -1)[s]
        scores = [_score(module, linear, selecting, found) for found in retrieved]
        shares = torch.stack(scores).softmax(0)
        chosen.append((shares[..., None] * torch.stack(retrieved)).sum(0))
    return linear(torch.cat(chosen, -1), "out_proj")


def _score(module, linear, selecting, found):
    if module.qk_rule:
        return (selecting * linear(found, "value_k")).sum(-1) / module.dim_selection**0.5
    both = torch.cat([found, selecting], -1)
    if module.nonlinear:
        return linear(linear(both, "score_network.0").relu(), "score_network.2")[..., 0]
    return linear(both, "score_network")[..., 0]
