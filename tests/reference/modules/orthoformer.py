"""Orthoformer and its choices of landmarks, one sequence and head at a time, written out."""

import math

import torch


def orthoformer_attention(q, k, v, landmarks):
    """Attention by way of landmarks [m, K] for q [Mq, K], k [Mkv, K], v [Mkv, Kv]."""
    scale = 1 / math.sqrt(q.shape[-1])
    to_landmarks = torch.softmax(scale * q @ landmarks.T, -1)
    return to_landmarks @ torch.softmax(scale * landmarks @ k.T, -1) @ v


def orthogonal_places(rows, first, count):
    """Algorithm 1 of arXiv:2106.05392: the places of the least parallel rows, from `first` on."""
    unit = [row / row.norm() for row in rows]
    places = [first]
    while len(places) < count:
        others = [i for i in range(len(rows)) if i not in places]
        places.append(min(others, key=lambda i: max(abs(unit[i] @ unit[j]) for j in places)))
    return places


def lloyd(rows, centres, iterations, likeness):
    """Return the means of the clusters of rows [n, K] around `centres` after so many turns."""
    rows, centres = list(rows), list(centres)
    for _ in range(iterations):
        owner = [
            max(range(len(centres)), key=lambda c: float(likeness(row, centres[c]))) for row in rows
        ]
        for c in range(len(centres)):
            members = [row for row, of in zip(rows, owner, strict=True) if of == c]
            if members:
                centres[c] = torch.stack(members).mean(0)
    return torch.stack(centres)


def spherical_lloyd(rows, centres, iterations):
    """As `lloyd` by angle; the result is the means of the rows as they are."""
    unit = [row / row.norm() for row in rows]
    heads = [centre / centre.norm() for centre in centres]
    means = list(centres)
    for _ in range(iterations):
        owner = [max(range(len(heads)), key=lambda c: float(u @ heads[c])) for u in unit]
        for c in range(len(heads)):
            members = [i for i, of in enumerate(owner) if of == c]
            if members:
                direction = torch.stack([unit[i] for i in members]).mean(0)
                heads[c] = direction / direction.norm()
                means[c] = torch.stack([rows[i] for i in members]).mean(0)
    return torch.stack(means)
