"""Input projections against products with their weights."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from attn_modules import InputProjection, InputProjectionConfig


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_each_input_has_its_own_map():
    maps = [InputProjectionConfig(*sizes) for sizes in ((6, 8, True), (5, 8, False), (4, 10, True))]
    projection = InputProjection(*maps)
    inputs = drawn(2, 3, 6), drawn(2, 7, 5), drawn(2, 7, 4)
    state = projection.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes == {
        "q_proj.weight": (8, 6),
        "q_proj.bias": (8,),
        "k_proj.weight": (8, 5),
        "v_proj.weight": (10, 4),
        "v_proj.bias": (10,),
    }
    for name, x, out in zip("qkv", inputs, projection(*inputs), strict=True):
        expected = x @ state[f"{name}_proj.weight"].T + state.get(f"{name}_proj.bias", 0)
        assert_close(out, expected)


def test_key_and_value_are_mapped_like_the_query_by_default():
    projection = InputProjection(InputProjectionConfig(6, 8))
    assert [tuple(x.shape) for x in projection(*[drawn(2, 3, 6)] * 3)] == [(2, 3, 8)] * 3
    assert len(list(projection.parameters())) == 6


@pytest.mark.parametrize("biases", [(True, True, True), (True, False, True)])
def test_a_shared_weight_costs_one_product(biases):
    projection = InputProjection(
        *(InputProjectionConfig(6, 8, bias) for bias in biases), use_separate_proj_weight=False
    )
    for proj in projection.children():
        if proj.bias is not None:
            torch.nn.init.normal_(proj.bias)
    x = drawn(2, 3, 6).requires_grad_()
    with FlopCounterMode(display=False) as flops:
        together = projection(x, x, x)
    assert flops.get_total_flops() == 2 * (2 * 3) * 6 * 8
    apart = projection(x, x.clone(), x.clone())
    assert_close(together, apart)
    inputs = [x, *projection.parameters()]
    weights = [drawn(2, 3, 8) * number for number in (1, 2, 3)]
    ours, theirs = (torch.autograd.grad(out, inputs, weights) for out in (together, apart))
    assert_close(ours, theirs)


def test_a_shared_weight_stays_shared():
    projection = InputProjection(InputProjectionConfig(6, 6), use_separate_proj_weight=False)
    assert len(list(projection.parameters())) == 4
    other = InputProjection(InputProjectionConfig(6, 6), use_separate_proj_weight=False)
    other.load_state_dict(projection.state_dict())
    x = drawn(1, 2, 6)
    assert all(map(torch.equal, other(x, x, x), projection(x, x, x)))


def test_autocast_projects_in_its_dtype():
    projection = InputProjection(InputProjectionConfig(6, 6), use_separate_proj_weight=False)
    x = drawn(1, 2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert {out.dtype for out in projection(x, x, x)} == {torch.bfloat16}


def test_weights_of_other_shapes_are_not_shared():
    with pytest.raises(ValueError, match=r"got \[8, 6\], \[8, 5\] and \[8, 6\] for query, key"):
        InputProjection(
            InputProjectionConfig(6, 8),
            InputProjectionConfig(5, 8),
            use_separate_proj_weight=False,
        )


def test_other_dtypes_than_the_weights_are_refused():
    projection, x = InputProjection(InputProjectionConfig(4, 4)), torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match=r"expected torch\.float32.* got torch\.float16"):
        projection(x, x.half(), x)
    with torch.autocast("cpu", torch.bfloat16):
        assert projection(x, x.bfloat16(), x)[1].dtype == torch.bfloat16
