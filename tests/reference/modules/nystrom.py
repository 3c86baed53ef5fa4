"""Nystrom attention as its paper writes it, one sequence and head at a time, in float64."""

import itertools
import math

import torch


def segments(count, number):
    """Return the rows of each segment, the last ones longer by one."""
    short, longer = divmod(count, number)
    bounds = [0]
    for segment in range(number):
        bounds.append(bounds[-1] + short + (segment >= number - longer))
    return [range(*pair) for pair in itertools.pairwise(bounds)]


def landmarks(rows, number):
    """Return the means of rows [n, K]; segments without a row have none."""
    return torch.stack([rows[list(part)].mean(0) for part in segments(len(rows), number) if part])


def probabilities(q, k):
    return torch.softmax(q @ k.T / math.sqrt(q.shape[-1]), -1)


def razavi(a, steps, start=None):
    """Equation 11 of arXiv:2102.03902; `start` is what its first guess is divided by."""
    z = a.T / (a.sum(0).max() if start is None else start)
    eye = torch.eye(len(a), dtype=a.dtype)
    for _ in range(steps):
        z = z @ (13 * eye - a @ z @ (15 * eye - a @ z @ (7 * eye - a @ z))) / 4
    return z


def nystrom_attention(q, k, v, number, invert, q_keep=None, k_keep=None):
    """Equation 13 for q [Mq, K], k [Mkv, K], v [Mkv, Kv], over kept keys alone.

    The matrices of probabilities are written out; `invert` takes that of the landmarks.
    """
    if k_keep is not None:
        k, v = k[k_keep], v[k_keep]
    q_landmarks = landmarks(q if q_keep is None else q[q_keep], number)
    k_landmarks = landmarks(k, number)
    inverse = invert(probabilities(q_landmarks, k_landmarks))
    return probabilities(q, k_landmarks) @ inverse @ probabilities(q_landmarks, k) @ v


def convolution(v, weight, first):
    """Return sum_t weight[t] v[i + first + t], where rows outside v [M, Kv] are 0."""
    out = torch.zeros_like(v)
    for i in range(len(v)):
        for t, factor in enumerate(weight):
            if 0 <= i + first + t < len(v):
                out[i] = out[i] + factor * v[i + first + t]
    return out
