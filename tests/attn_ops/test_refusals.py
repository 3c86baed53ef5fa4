"""What the core refuses about a mask's numbers is told in the words of whoever made the mask."""

import pytest
import torch

from attn_ops import LowerTriangularMask, memory_efficient_attention
from attn_ops._inputs import Inputs
from attn_ops.fmha import attn_bias as masks
from attn_ops.refusals import in_users_terms, refusal_of_core


def rand(*shape):
    return torch.randn(shape)


def packed():
    # The core alone reads lengths that come as tensors.
    lengths = torch.tensor([[2, 3], [4, 3]], dtype=torch.int32)
    return masks.BlockDiagonalMask.from_seqlens(*lengths)


def padded(*lengths):
    return masks.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([2, 3], 5, lengths)


def paged(*pages):
    tables = torch.tensor([[page] for page in pages], dtype=torch.int32)
    return masks.PagedBlockDiagonalPaddedKeysMask.from_seqlens([2, 3], [4, 3], tables, 4)


def grown(mask):
    mask.k_seqinfo.seqlen.add_(1)
    return mask


def overlapping(mask):
    mask.offsets[0, 1] = 5
    return mask


BLOCKS = masks.BlockSparseMask
# How many queries and keys, the mask, and what is told.
REFUSALS = {
    "fewer queries": (4, 7, packed, "made for 5 queries and 7 keys, and these are 4 and 7"),
    "fewer keys": (5, 6, packed, "made for 5 queries and 7 keys, and these are 5 and 6"),
    "starts": (4, 7, packed, "attn_bias.q_seqinfo.seqstart[2] = 5 after 2"),
    "full cache": (5, 10, lambda: grown(padded(5, 3)), "(kv_padding, max_q_seqlen, max_kv_seqlen)"),
    "end of the cache": (5, 10, lambda: grown(padded(5, 5)), "; shorten k_seqinfo.seqlen"),
    "full cache and bias": (
        5,
        10,
        lambda: grown(padded(5, 3)).add_bias(rand(1, 1, 5, 10)),
        "within what attn_bias.mask was made for, 3 queries and 5 keys, got 2 and 6",
    ),
    "full pages": (5, 8, lambda: grown(paged(0, 1)), "got k_seqinfo.seqstart 0 and k_seqinfo.seq"),
    "page": (5, 8, lambda: paged(0, 4000), "attn_bias.block_tables[1, 0] to be one of key's 2"),
    "block": (5, 7, lambda: BLOCKS.from_lists([[0], [9]], 3), "name blocks that key has"),
    "heads of blocks": (
        5,
        7,
        lambda: BLOCKS.from_pattern(torch.ones(3, 2, 3, dtype=torch.bool), 3),
        "to be 4 or 1 as in query, got 3; make the mask for query's heads",
    ),
    "lists of blocks": (
        5,
        7,
        lambda: overlapping(BLOCKS.from_lists([[0], [0]], 3)),
        "attn_bias.offsets to ascend within the 2 indices",
    ),
}
INNER_NAMES = ("k_len", "q_start", "k_start", "block_table[", "max_q_len", "NULL", ".cpp")


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_names_what_the_user_knows(case, requires_grad):
    num_queries, num_keys, make_mask, message = REFUSALS[case]
    query = rand(1, num_queries, 4, 8).requires_grad_(requires_grad)
    key = rand(1, num_keys, 4, 8)
    with pytest.raises(ValueError, match="memory_efficient_attention: expected ") as raised:
        memory_efficient_attention(query, key, key, make_mask())
    told = str(raised.value)
    assert message in told
    assert not [name for name in INNER_NAMES if name in told]


@pytest.mark.parametrize(
    "case", ["page", "block", "heads of blocks", "lists of blocks", "full cache", "full pages"]
)
def test_lengths_are_told_only_where_they_are_at_fault(case):
    num_queries, num_keys, make_mask, _ = REFUSALS[case]
    query, key = rand(1, num_queries, 4, 8), rand(1, num_keys, 4, 8)
    with pytest.raises(ValueError, match="expected ") as raised:
        memory_efficient_attention(query, key, key, make_mask())
    assert "and these are" not in str(raised.value)


def test_another_error_of_an_operator_is_no_refusal():
    inputs = Inputs(rand(1, 2, 1, 8), rand(1, 2, 1, 8), rand(1, 2, 1, 8), LowerTriangularMask())
    assert in_users_terms(RuntimeError("out of memory"), inputs) is None


@pytest.mark.parametrize(
    ("message", "refusal"),
    [
        ("attn_attention_forward: expected key's B to be 2", "expected key's B to be 2"),
        ("attn_step_workspace: expected window to be 1", "expected window to be 1"),
        ("attn_linear: expected x", "expected x"),
        ("step: expected x [B, E], got 1 dimensions", "expected x [B, E], got 1 dimensions"),
        ("attn_ops: expected CPU or CUDA tensors, got one on meta", None),
        ("a mistake at this step: none of ours", None),
    ],
)
def test_refusals_of_the_core_are_told_from_other_errors(message, refusal):
    assert refusal_of_core(RuntimeError(message)) == refusal
