"""What every mechanism promises of memory: nothing has as many elements as queries times keys."""

import dataclasses

import pytest
import torch

from allocated_elements import AllocatedElements
from mechanism_cases import CASES, HEADS, WIDTH
from mechanism_cases import LENGTH as SHORT

LENGTH = 1024
"""A square, as some mechanisms need; its own square outgrows everything that has a reason."""


def lengthened(case):
    """Return the case for `LENGTH` rows."""
    options = dict(case.options)
    if "attention_query_mask" in options:
        options["attention_query_mask"] = torch.arange(LENGTH).remainder(400).eq(1).unsqueeze(1)
    if "seq_len" in options:
        options["seq_len"] = LENGTH
    if "layout" in options:
        blocks = torch.eye(LENGTH // 16).expand(HEADS, -1, -1)
        options |= {"layout": blocks, "block_size": 16}
    if options.get("num_landmarks") == SHORT:  # as many as there are rows
        options["num_landmarks"] = LENGTH
    if "r" in options:
        options["r"] = 0.01
    return dataclasses.replace(case, options=options)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_no_result_has_queries_times_keys(case):
    case = lengthened(case)
    attention = case.build().train()
    shape = case.operands(queries=4)[0].shape[1:-2]
    operands = [torch.randn(1, *shape, LENGTH, WIDTH).requires_grad_() for _ in range(3)]
    keep = torch.arange(LENGTH).lt(LENGTH - 100).unsqueeze(0)
    with AllocatedElements() as allocated:
        out = attention(*operands, key_padding_mask=keep)
        out.sum().backward()
    assert allocated.largest < LENGTH * LENGTH // 4, allocated.operation


def test_the_watch_sees_a_matrix_of_scores_in_either_direction():
    q, k = (torch.randn(64, 4).requires_grad_() for _ in range(2))
    with AllocatedElements() as allocated:
        out = (q @ k.T).square().sum()
    assert allocated.largest == 64 * 64
    with AllocatedElements() as allocated:
        out.backward()
    assert allocated.largest == 64 * 64


def test_the_watch_counts_no_views():
    x = torch.zeros(3)
    with AllocatedElements() as allocated:
        x.expand(1000, 3)
    assert allocated.largest == 0
