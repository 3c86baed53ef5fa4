"""The divisions of a dimension: their fields, tensors as lengths, and changes in place."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch

from attn_ops.fmha.attn_bias import _GappySeqInfo, _PaddedSeqLenInfo, _SeqLenInfo

LENGTHS = [[2, 3, 2], [0, 0], [1], [0, 5, 1, 0]]


def integers(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


@pytest.mark.parametrize("seqlens", LENGTHS)
@pytest.mark.parametrize(
    "form", [list, tuple, iter, torch.tensor, lambda x: torch.tensor(x, dtype=torch.int32)]
)
def test_packed_fields(seqlens, form):
    info = _SeqLenInfo.from_seqlens(form(seqlens))
    starts = [sum(seqlens[:b]) for b in range(len(seqlens) + 1)]
    assert info.seqstart.dtype == torch.int32
    assert info.seqstart.tolist() == info.seqstart_py == starts
    assert (info.max_seqlen, info.min_seqlen) == (max(seqlens), min(seqlens))
    assert list(info.intervals()) == list(pairwise(starts))
    assert info.lengths() == seqlens
    assert info.count == len(seqlens)


@pytest.mark.parametrize("lengths", [[], torch.zeros(0, dtype=torch.int64)])
def test_no_sequences(lengths):
    info = _SeqLenInfo.from_seqlens(lengths)
    assert (info.max_seqlen, info.min_seqlen, info.seqstart_py) == (-1, -1, [0])
    assert info.capacity == 0


def test_constructor_takes_the_fields_of_xformers():
    info = _SeqLenInfo(seqstart=integers(0, 2), max_seqlen=2, min_seqlen=2, seqstart_py=[0, 2])
    assert list(info.intervals()) == [(0, 2)]
    assert info.split(torch.zeros(1, 2, 3))[0].shape == (1, 2, 3)


def test_constructor_needs_the_starts_alone():
    info = _SeqLenInfo(integers(0, 2, 7))
    assert (info.max_seqlen, info.min_seqlen, info.seqstart_py) == (5, 2, [0, 2, 7])
    assert info.capacity == 0


@pytest.mark.parametrize("seqlens", [[3, -1], torch.tensor([3, -1])])
def test_negative_lengths_are_refused(seqlens):
    with pytest.raises(ValueError, match=r"expected lengths of 0 or more, got \[3, -1\]"):
        _SeqLenInfo.from_seqlens(seqlens)


@pytest.mark.parametrize(
    ("most", "error"), [(5.0, TypeError), ("5", TypeError), (2**63, ValueError)]
)
def test_maximum_is_an_int(most, error):
    with pytest.raises(error, match=r"attn_bias: expected .*max_seqlen"):
        _SeqLenInfo.from_seqlens([2, 3], max_seqlen=most)


@pytest.mark.parametrize("seqlens", [torch.ones(2), torch.ones(2, 2, dtype=torch.int32)])
def test_tensors_must_be_one_axis_of_integers(seqlens):
    with pytest.raises(ValueError, match="expected lengths as Python ints or an int32 or int64"):
        _SeqLenInfo.from_seqlens(seqlens)


def test_maximum_may_be_given():
    info = _SeqLenInfo.from_seqlens([2, 3], max_seqlen=8)
    assert (info.max_seqlen, info.capacity) == (8, 8)
    with pytest.raises(ValueError, match="at most max_seqlen=2"):
        _SeqLenInfo.from_seqlens([2, 3], max_seqlen=2)


def test_lengths_on_another_device_are_never_read():
    lengths = torch.zeros(3, dtype=torch.int64, device="meta")
    info = _SeqLenInfo.from_seqlens(lengths)
    assert info.seqstart.device.type == "meta"
    assert info.seqstart.shape == (4,)
    assert info.capacity == 0
    assert not info.are_known
    assert _SeqLenInfo.from_seqlens(lengths, max_seqlen=9).capacity == 9
    assert _PaddedSeqLenInfo.from_seqlens_padded(lengths, 5).capacity == 5


def test_padded_fields():
    info = _PaddedSeqLenInfo.from_seqlens_padded([2, 3, 2], 4)
    assert info.seqstart.tolist() == info.seqstart_py == [0, 4, 8, 12]
    assert info.seqlen.tolist() == info.seqlen_py == [2, 3, 2]
    assert (info.padding, info.max_seqlen, info.min_seqlen) == (4, 3, 2)
    assert list(info.intervals()) == [(0, 2), (4, 7), (8, 10)]
    assert info.count == 3
    assert isinstance(info, _SeqLenInfo)


@pytest.mark.parametrize("seqlens", [[2, 5], torch.tensor([2, 5])])
def test_padding_holds_the_lengths(seqlens):
    with pytest.raises(AssertionError, match=r"at most the padding 4, got \[2, 5\]"):
        _PaddedSeqLenInfo.from_seqlens_padded(seqlens, 4)


def test_padded_starts_are_one_more_than_lengths():
    with pytest.raises(AssertionError, match="one start more than lengths"):
        _PaddedSeqLenInfo(integers(0, 4), 2, 2, [0, 4], integers(1, 2), [1, 2], 4)


def test_gappy_fields():
    info = _GappySeqInfo.from_seqlens_gappy([0, 7, 12, 14], [6, 3, 1], paged=False)
    assert info.seqstart.tolist() == info.seqstart_py == [0, 7, 12, 14]
    assert info.seqlen.tolist() == info.seqlen_py == [6, 3, 1]
    assert (info.max_seqlen, info.min_seqlen) == (6, 1)
    assert list(info.intervals()) == [(0, 6), (7, 10), (12, 13)]


def test_gappy_starts_of_pages_have_no_end():
    info = _GappySeqInfo.from_seqlens_gappy(integers(1, 1), integers(2, 0), paged=True)
    assert list(info.intervals()) == [(1, 3), (1, 1)]


@pytest.mark.parametrize(("starts", "paged"), [([0, 2], False), ([0, 2, 4], True)])
def test_gappy_counts_must_match(starts, paged):
    with pytest.raises(ValueError, match=r"got \d starts and 2 lengths"):
        _GappySeqInfo.from_seqlens_gappy(starts, [1, 1], paged)


def test_gappy_needs_a_sequence():
    with pytest.raises(ValueError, match="expected one sequence or more"):
        _GappySeqInfo.from_seqlens_gappy([0], [], paged=False)


def test_constructors_that_lack_something_refuse():
    with pytest.raises(RuntimeError, match="from_seqlens_padded"):
        _PaddedSeqLenInfo.from_seqlens([1])
    with pytest.raises(NotImplementedError, match="from_seqlens_gappy"):
        _GappySeqInfo.from_seqlens([1])
    for info in (
        _PaddedSeqLenInfo.from_seqlens_padded([1], 1),
        _GappySeqInfo.from_seqlens_gappy([0, 1], [1], paged=False),
    ):
        with pytest.raises(NotImplementedError, match="split"):
            info.split(torch.zeros(1, 1))


@pytest.mark.parametrize("seqlens", [[1, 4, 2], torch.tensor([1, 4, 2])])
@pytest.mark.parametrize("former", [[5, 0, 3], torch.tensor([5, 0, 3])])
def test_packed_lengths_change_in_place(former, seqlens):
    info = _SeqLenInfo.from_seqlens(former)
    kernels_read = info.seqstart
    info.from_seqlens_inplace(seqlens)
    assert info.seqstart is kernels_read
    assert kernels_read.tolist() == info.seqstart_py == [0, 1, 5, 7]
    assert (info.max_seqlen, info.min_seqlen) == (5, 1)


@pytest.mark.parametrize("seqlens", [[1, 4], torch.tensor([1, 4])])
def test_padded_lengths_change_in_place(seqlens):
    info = _PaddedSeqLenInfo.from_seqlens_padded([5, 0], 6)
    kernels_read = info.seqlen
    info.from_seqlens_padded_inplace(seqlens)
    assert info.seqlen is kernels_read
    assert kernels_read.tolist() == info.seqlen_py == [1, 4]
    assert info.seqstart_py == [0, 6, 12]
    assert info.max_seqlen == 5


def test_own_int32_tensor_is_kept_so_that_its_changes_are_seen():
    lengths = integers(1, 2)
    info = _PaddedSeqLenInfo.from_seqlens_padded(lengths, 6)
    assert info.seqlen is lengths
    lengths.add_(1)
    assert info.seqlen_py == [2, 3]
    assert list(info.intervals()) == [(0, 2), (6, 9)]


def through_pickle(info):
    return pickle.loads(pickle.dumps(info))  # noqa: S301


def made_normally(make):
    return make()


def made_in_inference_mode(make):
    with torch.inference_mode():
        return make()


@pytest.mark.parametrize("made", [made_normally, made_in_inference_mode])
@pytest.mark.parametrize("copied", [lambda x: x, copy.deepcopy, through_pickle])
def test_changes_of_the_tensor_show_in_every_view(made, copied):
    info = made(lambda: _PaddedSeqLenInfo.from_seqlens_padded([2, 3], 6))
    with torch.inference_mode():
        info.seqlen.add_(2)
    changed = copied(info)
    assert changed.seqlen.tolist() == changed.seqlen_py == changed.lengths() == [4, 5]
    assert list(changed.intervals()) == [(0, 4), (6, 11)]
    assert (changed.max_seqlen, changed.min_seqlen) == (5, 4)
    assert repr(changed) == "_PaddedSeqLenInfo([4, 5], device=cpu)"
    if copied is copy.deepcopy:
        changed.seqlen.add_(1)
        assert (changed.seqlen_py, info.seqlen_py) == ([5, 6], [4, 5])


def test_changed_lengths_move():
    info = _PaddedSeqLenInfo.from_seqlens_padded([2, 3], 6)
    info.from_seqlens_padded_inplace([4, 5])
    assert info.to("meta").seqlen_py == [4, 5]
    packed = _SeqLenInfo.from_seqlens([2, 3])
    packed.from_seqlens_inplace([1, 1])
    assert packed.to("meta").seqstart_py == [0, 1, 2]
    assert packed.to("meta").fixed_size is None


def test_changed_starts_show_in_every_view():
    info = _SeqLenInfo.from_seqlens([2, 3])
    assert info.fixed_size == 5
    info.seqstart[2] = 9
    assert (info.seqstart_py, info.lengths(), info.max_seqlen) == ([0, 2, 9], [2, 7], 7)
    assert info.fixed_size is None


def test_copies_stay_fixed():
    info = _SeqLenInfo.from_seqlens([2, 3])
    assert copy.deepcopy(info).fixed_size == through_pickle(info).fixed_size == 5


@pytest.mark.parametrize("lengths", [[2, 2.5], [2, 3.0], [1, "1"], [1, None]])
def test_lengths_are_whole_numbers(lengths):
    with pytest.raises(TypeError, match=f"Python ints, got {lengths[1]!r} at 1"):
        _SeqLenInfo.from_seqlens(lengths)
    with pytest.raises(TypeError, match=f"Python ints, got {lengths[1]!r} at 1"):
        _PaddedSeqLenInfo.from_seqlens_padded(lengths, 8)


def test_whole_numbers_of_other_libraries_are_ints():
    info = _SeqLenInfo.from_seqlens(list(torch.tensor([2, 3])))
    assert info.seqstart_py == [0, 2, 5]
    assert all(type(start) is int for start in info.seqstart_py)


def test_changes_in_place_keep_count_and_maximum():
    info = _SeqLenInfo.from_seqlens([2, 3])
    with pytest.raises(AssertionError, match="as many lengths as before"):
        info.from_seqlens_inplace([1, 1, 1])
    with pytest.raises(AssertionError, match="expected lengths of at most 3"):
        info.from_seqlens_inplace([4, 1])
    padded = _PaddedSeqLenInfo.from_seqlens_padded([2, 3], 4)
    with pytest.raises(AssertionError, match="as many lengths as before"):
        padded.from_seqlens_padded_inplace([1])
    with pytest.raises(AssertionError, match="expected lengths of at most 4"):
        padded.from_seqlens_padded_inplace([5, 1])
    assert info.seqstart_py == [0, 2, 5]
    assert padded.seqlen_py == [2, 3]


def test_divisions_move():
    for info, name in (
        (_SeqLenInfo.from_seqlens([2, 3]), "seqstart"),
        (_PaddedSeqLenInfo.from_seqlens_padded([2, 3], 4), "seqlen"),
        (_GappySeqInfo.from_seqlens_gappy([0, 2, 6], [1, 3], paged=False), "seqlen"),
    ):
        assert info.to("cpu") is info
        moved = info.to("meta")
        assert type(moved) is type(info)
        assert getattr(moved, name).device.type == "meta"
        assert list(moved.intervals()) == list(info.intervals())
        assert moved.max_seqlen == info.max_seqlen


def test_starts_may_be_set_as_xformers_decoding_loops_do():
    info = _SeqLenInfo.from_seqlens([5, 3])
    info.seqstart.copy_(integers(0, 1, 2))
    info.min_seqlen = info.max_seqlen = 1
    info.seqstart_py = info.seqstart.tolist()
    assert (info.seqstart_py, info.lengths(), info.fixed_size) == ([0, 1, 2], [1, 1], None)
    assert (info.max_seqlen, info.min_seqlen, info.capacity) == (1, 1, 1)
    info.seqstart = starts = integers(0, 4, 5)
    assert info.seqstart is starts
    assert (info.lengths(), info.max_seqlen, info.min_seqlen) == ([4, 1], 4, 1)
    assert info.capacity == 0


def test_what_python_is_told_of_another_device_is_believed():
    info = _SeqLenInfo.from_seqlens(torch.zeros(2, dtype=torch.int64, device="meta"))
    info.seqstart_py = [0, 4, 5]
    info.max_seqlen, info.min_seqlen = 4, 1
    assert (info.lengths(), info.max_seqlen, info.min_seqlen, info.capacity) == ([4, 1], 4, 1, 4)
    padded = _PaddedSeqLenInfo.from_seqlens_padded(info.seqstart[:2], 8)
    padded.seqlen_py = [6, 2]
    assert list(padded.intervals()) == [(0, 6), (8, 10)]


def test_lengths_in_use_may_be_set():
    info = _PaddedSeqLenInfo.from_seqlens_padded([2, 3], 8)
    info.seqlen = lengths = integers(7, 1)
    assert info.seqlen is lengths
    assert (info.seqlen_py, info.max_seqlen, info.min_seqlen) == ([7, 1], 7, 1)
    gappy = _GappySeqInfo.from_seqlens_gappy([0, 4, 9], [2, 3], paged=False)
    gappy.seqlen = lengths
    assert list(gappy.intervals()) == [(0, 7), (4, 5)]
    assert gappy.capacity == 0


def test_moved_division_keeps_its_own_list():
    info = _PaddedSeqLenInfo.from_seqlens_padded([2, 3], 4)
    moved = info.to("meta")
    info.from_seqlens_padded_inplace([1, 1])
    assert moved.seqlen_py == [2, 3]


def test_split_cuts_into_the_tensors_that_were_joined():
    info = _SeqLenInfo.from_seqlens([2, 2, 0, 3])
    x = torch.arange(7.0).reshape(1, 7, 1)
    parts = info.split(x, batch_sizes=[2, 1, 1])
    assert [tuple(part.shape) for part in parts] == [(2, 2, 1), (1, 0, 1), (1, 3, 1)]
    assert torch.equal(torch.cat([part.reshape(-1) for part in parts]), x.reshape(-1))
    assert [part.shape[1] for part in info.split(x)] == [2, 2, 0, 3]


@pytest.mark.parametrize("shape", [(1, 6, 2), (2, 7, 2)])
def test_split_refuses_another_shape(shape):
    with pytest.raises(ValueError, match=r"expected a tensor \[1, 7, \*\]"):
        _SeqLenInfo.from_seqlens([2, 5]).split(torch.zeros(shape))


def test_divisions_show_their_lengths():
    assert repr(_SeqLenInfo.from_seqlens([2, 3])) == "_SeqLenInfo([2, 3], device=cpu)"


def test_lengths_alone_do_not_move_sequences_that_have_places():
    info = _PaddedSeqLenInfo.from_seqlens_padded([2, 3], 8)
    with pytest.raises(TypeError, match="from_seqlens_padded_inplace"):
        info.from_seqlens_inplace([3, 3])
    assert info.seqstart.tolist() == [0, 8, 16]


@pytest.mark.parametrize("lengths", [[2**31], [2**30, 2**30]])
def test_lengths_that_int32_cannot_count_are_refused(lengths):
    with pytest.raises(ValueError, match=r"below 2\*\*31 in all, got 2147483648"):
        _SeqLenInfo.from_seqlens(lengths)
