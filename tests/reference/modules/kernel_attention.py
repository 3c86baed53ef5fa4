"""Attention by features as its papers define it: every weight by itself, no chunks, no logarithms.

Shapes: q [Mq, K]; k [Mkv, K]; v [Mkv, Kv]; vectors [K, n], a random vector a column.
"""

import torch


def softmax_features(x, vectors, *, both_signs):
    """Choromanski et al. 2020, lemma 1, of rows scaled by K^(-1/4)."""
    x = x * x.shape[-1] ** -0.25
    if both_signs:
        vectors = torch.cat((vectors, -vectors), -1)
    factor = (-(x**2).sum(-1, keepdim=True) / 2).exp()
    return factor * (x @ vectors).exp() / vectors.shape[-1] ** 0.5


def relu_features(x, vectors):
    """Likewise, section 2.2, with the floor of the authors' code."""
    x = x * x.shape[-1] ** -0.25
    return (torch.where(x @ vectors > 0, x @ vectors, 0) + 1e-3) / vectors.shape[-1] ** 0.5


def elu_features(x):
    """Katharopoulos et al. 2020, eq. 7."""
    return torch.where(x > 0, x + 1, x.exp())


def kernel_attention(q, k, v, features, *, causal=False, keep=None):
    """Return [Mq, Kv], where a query that sees no key gets 0."""
    phi_q, phi_k = features(q), features(k)
    rows = []
    for i in range(len(q)):
        seen = [
            j for j in range(len(k)) if (j <= i or not causal) and (keep is None or bool(keep[j]))
        ]
        if not seen:
            rows.append((0 * v[0]).nan_to_num(0.0))
            continue
        weights = torch.stack([phi_q[i] @ phi_k[j] for j in seen])
        rows.append(weights @ v[seen] / weights.sum())
    return torch.stack(rows)
