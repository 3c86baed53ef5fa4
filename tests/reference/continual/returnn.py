"""RETURNN's attention as its formulas say, pair by pair, for one sequence in float64."""

import math

import torch


def relative_encoding(distance, features):
    """[sin(r w_0), ..., cos(r w_0), ...] with w_i = 10000^(-2 i / F)."""
    angles = [distance * 10000 ** (-2 * i / features) for i in range(features // 2)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


def absolute_encoding(position, features, base=1e4):
    """[sin(p w_0), ..., cos(p w_0), ...] with w_i = base^(-i / (F / 2 - 1)), and w_0 = 1."""
    half = features // 2
    rates = [base ** (-i / (half - 1)) if half > 1 else 1.0 for i in range(half)]
    return [math.sin(position * w) for w in rates] + [math.cos(position * w) for w in rates]


def attend(scores, values):
    """Softmax over the seen keys: `scores` maps j to a number; none seen gives 0."""
    if not scores:
        return torch.zeros_like(values[0])
    weights = torch.softmax(torch.stack(list(scores.values())), 0)
    return sum(w * values[j] for w, j in zip(weights, scores, strict=True))


def self_attention(layer, x, sees):
    """Self-attention of one sequence x [T, in] with a layer's parameters, by head and pair.

    sees(i, j) tells whether query i sees key j.
    """
    p = dict(layer.named_parameters())
    heads = layer.num_heads.size
    dk, dv = layer.key_dim_total.size // heads, layer.value_dim_total.size // heads
    rows = x @ p["qkv.weight"] + p.get("qkv.bias", 0)
    out = []
    for i in range(len(x)):
        by_head = []
        for h in range(heads):
            start = h * (2 * dk + dv)
            q = rows[:, start : start + dk]
            k = rows[:, start + dk : start + 2 * dk]
            v = rows[:, start + 2 * dk : start + 2 * dk + dv]
            scores = {
                j: score(layer, p, h, q[i], k[j], j - i) / math.sqrt(dk)
                for j in range(len(x))
                if sees(i, j)
            }
            by_head.append(attend(scores, v))
        out.append(torch.cat(by_head))
    out = torch.stack(out) if out else x.new_zeros(0, heads * dv)
    return out @ p["proj.weight"] + p.get("proj.bias", 0) if "proj.weight" in p else out


def score(layer, p, head, q, k, distance):
    """(q + u) . k + (q + v) . P[distance], or q . k for a layer without positions."""
    if not hasattr(layer, "pos_emb_dropout"):
        return q @ k
    u = p["pos_bias_u"][head] if "pos_bias_u" in p else 0
    v = p["pos_bias_v"][head] if "pos_bias_v" in p else 0
    return (q + u) @ k + (q + v) @ position_row(layer, p, head, len(q), distance)


def position_row(layer, p, head, dk, distance):
    """P[distance] of a head: an encoding, projected if there is a projection."""
    if "learned_pos_emb.pos_emb" in p:
        table = p["learned_pos_emb.pos_emb"]
        clipping = (len(table) - 1) // 2
        row = table[max(-clipping, min(clipping, distance)) + clipping]
    else:
        features = layer.pos_emb_feat_dim.size
        row = torch.tensor(relative_encoding(distance, features), dtype=torch.float64)
    if "linear_pos.weight" in p:
        row = row @ p["linear_pos.weight"]
    return row[head * dk : (head + 1) * dk] if layer.separate_pos_emb_per_head else row


def cross_attention(layer, x, encoder, num_keys):
    """Attention from x [Mq, query] to the first keys of encoder [Mkv, encoder], by head."""
    p = dict(layer.named_parameters())
    heads = layer.num_heads.size
    dk, dv = layer.key_dim_total.size // heads, layer.value_dim_total.size // heads
    queries = x @ p["q.weight"] + p["q.bias"]
    rows = encoder @ p["kv.weight"] + p["kv.bias"]
    out = []
    for query in queries:
        by_head = []
        for h in range(heads):
            start = h * (dk + dv)
            k = rows[:, start : start + dk]
            v = rows[:, start + dk : start + dk + dv]
            q = query[h * dk : (h + 1) * dk]
            scores = {j: q @ k[j] / math.sqrt(dk) for j in range(num_keys)}
            by_head.append(attend(scores, v))
        out.append(torch.cat(by_head))
    return torch.stack(out) @ p["proj.weight"] + p["proj.bias"]
