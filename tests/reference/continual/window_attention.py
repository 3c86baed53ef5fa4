"""Attention over a sliding window, key by key: for every stream, step and head a sum of its own."""

import torch


def attend_windows(query, key, value, length, delay, *, hidden=None, added=None, extra=None):
    """Return the outputs [N, T, H, Kv], float64; NaN for steps whose query is not there yet.

    The output of step t is that of the query of step t - delay over the keys of (t - length, t].

    query, key [N, T, H, K]; value [N, T, H, Kv]. hidden: bool [N, T], keys that nobody sees. added:
    [N, H, length], to the scores of a window's keys, the oldest first. extra: keys [E, H, K] and
    values [E, H, Kv] that every query sees.
    """
    query, key, value = query.double(), key.double(), value.double()
    streams, steps, heads, width = key.shape
    out = torch.full((*value.shape[:3], value.shape[3]), torch.nan, dtype=torch.float64)
    for n in range(streams):
        for t in range(delay, steps):
            for h in range(heads):
                scores, rows = [], []
                for j in range(max(t - length + 1, 0), t + 1):
                    if hidden is not None and hidden[n, j]:
                        continue
                    score = query[n, t - delay, h] @ key[n, j, h] / width**0.5
                    if added is not None:
                        score = score + added[n, h, j - t + length - 1]
                    scores.append(score)
                    rows.append(value[n, j, h])
                if extra is not None:
                    scores += list(extra[0][:, h].double() @ query[n, t - delay, h] / width**0.5)
                    rows += list(extra[1][:, h].double())
                if rows:
                    out[n, t, h] = torch.softmax(torch.stack(scores), 0) @ torch.stack(rows)
                else:
                    out[n, t, h] = 0
    return out
