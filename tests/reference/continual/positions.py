"""Attention by relative positions in float64, pair by pair, as the papers write it."""

import torch


def row_of(query, key, offset, zero_row, rows):
    """Return the row of a table for a query at place query + offset, and a key."""
    return min(max(key - (query + offset) + zero_row, 0), rows - 1)


def index_of(num_queries, num_keys, offset, zero_row, rows):
    """Return those rows of all pairs, int64 [Mq, Mkv]."""
    return torch.tensor(
        [
            [row_of(i, j, offset, zero_row, rows) for j in range(num_keys)]
            for i in range(num_queries)
        ],
        dtype=torch.int64,
    ).view(num_queries, num_keys)


def seen(num_queries, num_keys, offset, window_left, window_right):
    """Return which keys the window lets each query see, bool [Mq, Mkv]."""
    distance = torch.arange(num_keys) - (torch.arange(num_queries)[:, None] + offset)
    keep = torch.ones(num_queries, num_keys, dtype=torch.bool)
    if window_left is not None:
        keep &= distance >= -window_left
    if window_right is not None:
        keep &= distance <= window_right
    return keep


def attend(
    query,
    key,
    value,
    key_table=None,
    *,
    position_query=None,
    query_table=None,
    position_key=None,
    zero_row=None,
    offset=0,
    window_left=None,
    window_right=None,
    attn_bias=None,
    keep=None,
    scale=None,
):
    """Return softmax(scale * (content + key positions + query positions) + bias) value.

    Every table is spelled out as one vector per pair and head, [H, Mq, Mkv, Kp].
    """
    num_queries, num_keys = query.shape[1], key.shape[1]
    heads = query.shape[2]
    key, value = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (key, value))
    position_query = query if position_query is None else position_query
    position_key = key if position_key is None else position_key
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.einsum("bihk,bjhk->bhij", query, key)
    for table, rows, equation in (
        (key_table, position_query, "bihk,hijk->bhij"),
        (query_table, position_key, "bjhk,hijk->bhij"),
    ):
        if table is not None:
            zero = table.shape[1] // 2 if zero_row is None else zero_row
            index = index_of(num_queries, num_keys, offset, zero, table.shape[1])
            pairs = table.expand(heads, -1, -1)[:, index]
            scores = scores + torch.einsum(equation, rows, pairs)
    scores = scale * scores
    if attn_bias is not None:
        scores = scores + attn_bias
    visible = seen(num_queries, num_keys, offset, window_left, window_right)
    if keep is not None:
        visible = visible & keep
    visible = visible.expand(scores.shape)
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    weights = torch.where(visible, weights, 0.0)  # a row without keys is NaN
    return torch.einsum("bhij,bjhk->bihk", weights, value)
