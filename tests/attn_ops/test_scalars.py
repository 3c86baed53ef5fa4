"""Numbers among arguments: which are taken, as what, and that asking needs no torch."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from attn_ops.scalars import check_counts, check_scalars, plain_number


@pytest.mark.parametrize("number", [2, 0.5, np.float32(0.5), np.int64(2)])
def test_numbers_become_pythons_own(number):
    plain = plain_number("attend", "a number", number)
    assert type(plain) in (int, float)
    assert plain == number


@pytest.mark.parametrize("sign", [1, -1])
def test_an_int_beyond_all_floats_is_infinite(sign):
    assert plain_number("attend", "a number", sign * 10**400) == sign * math.inf
    assert plain_number("attend", "a number", sign * 2**70) == sign * 2**70


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (True, "attend: expected a number as p, got True of <class 'bool'>$"),
        ("0.5", "attend: expected a number as p, got '0.5' of <class 'str'>$"),
        (torch.tensor(0.5), r"of <class 'torch.Tensor'>; pass its float\(\), which has no"),
    ],
)
def test_what_is_no_number_is_refused(value, message):
    with pytest.raises(TypeError, match=message):
        plain_number("attend", "a number as p", value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"band_left": 1.0}, TypeError, "attend: expected an integer as band.left, got 1.0 of"),
        ({"num_threads": 2**31}, ValueError, "attend: expected num_threads of -2147483648 or more"),
        ({"dropout_p": None}, TypeError, "attend: expected a number as dropout_p, got None of <c"),
        ({"scale": "1"}, TypeError, "attend: expected a number or None as scale, got '1' of <cla"),
        ({"scale": np.inf}, ValueError, "attend: scale must be finite, or None for the default"),
        ({"scale": 10**400}, ValueError, "attend: scale must be finite, or None for the default"),
    ],
)
def test_numbers_of_a_native_call_are_checked_by_name(options, error, message):
    check_scalars("attend", {"band_right": np.int32(3), "dropout_p": np.float32(0.1)})
    with pytest.raises(error, match=message):
        check_scalars("attend", options)


def test_no_torch_is_needed():
    block = "import sys; sys.modules['torch'] = None\n"  # which makes its import fail
    run = f"{block}from attn_ops.scalars import plain_number\nplain_number('f', 'a number', 1)"
    subprocess.run([sys.executable, "-c", run], check=True)


@pytest.mark.parametrize("count", [0, -1, 5.0, None, "5"])
def test_counts_are_integers_of_enough(count):
    with pytest.raises(ValueError, match=f"who: expected rows, an int of 1 or more, got {count!r}"):
        check_counts("who", columns=3, rows=count)
    check_counts("who", 0, rows=0)
