"""The operator of relative positions: what torch asks of operators, and that its parts combine."""

import pytest
import torch
from torch.testing import assert_close

from attn_ops.mask import ANCHOR_BOTTOM_RIGHT

OP = torch.ops.attn_ops.attention_by_position


def make_call(*, dtype=torch.float32, requires_grad=True):
    """Return query, key and value, and the named tensors, of 5 queries and 7 keys."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        x = torch.randn(*shape, generator=generator, dtype=dtype)
        return x.requires_grad_(requires_grad)

    inputs = draw(2, 5, 4, 6), draw(2, 7, 2, 6), draw(2, 7, 2, 3)
    return inputs, {
        "position_query": draw(2, 5, 4, 2),
        "key_table": draw(1, 9, 2),
        "position_key": draw(2, 7, 4, 3),
        "query_table": draw(4, 5, 3),
        "zero_row": 4,
    }


def scores_of_positions(named, num_queries, num_keys):
    """Return what positions add to the unscaled scores [B, H, Mq, Mkv]."""
    shift = num_keys - num_queries
    distance = torch.arange(num_keys) - torch.arange(num_queries)[:, None] - shift
    row = distance + named["zero_row"]
    of_queries, of_keys = (
        named[name][:, row.clamp(0, named[name].shape[1] - 1)]
        for name in ("key_table", "query_table")
    )
    of_queries, of_keys = (table.expand(4, -1, -1, -1) for table in (of_queries, of_keys))
    by_query = torch.einsum("bihk,hijk->bhij", named["position_query"], of_queries)
    return by_query + torch.einsum("bjhk,hijk->bhij", named["position_key"], of_keys)


def test_opcheck():
    inputs, named = make_call()
    options = {"band_right": 1, "band_anchor": ANCHOR_BOTTOM_RIGHT, "sink": torch.ones(4)}
    torch.library.opcheck(OP.default, inputs, named | options)


def test_opcheck_of_content_and_of_shared_rows():
    inputs, _ = make_call()
    table = torch.randn(1, 3, 6, requires_grad=True)
    rows = torch.tensor([0, 2, 2, 1], dtype=torch.int32)
    torch.library.opcheck(
        OP.default, inputs, {"key_table": table, "key_table_rows": rows, "zero_row": 1}
    )


def test_opcheck_of_the_gradient():
    inputs, named = make_call(requires_grad=False)
    out, lse = OP(*inputs, **named)
    needed = {
        argument.name: argument.name not in {"need_bias", "need_slopes", "need_table", "need_sink"}
        for argument in torch.ops.attn_ops._attention_by_position_backward.default._schema.arguments
        if argument.name.startswith("need_")
    }
    grads = {"out": out, "lse": lse, "grad_out": out, "grad_lse": lse}
    operator = torch.ops.attn_ops._attention_by_position_backward.default
    torch.library.opcheck(operator, inputs, named | grads | needed)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_positions_beside_the_other_parts(softcap):
    inputs, named = make_call(dtype=torch.float64)
    bias = torch.randn(2, 1, 5, 7, dtype=torch.float64, requires_grad=True)
    sink = torch.randn(4, dtype=torch.float64, requires_grad=True)
    options = {"band_anchor": ANCHOR_BOTTOM_RIGHT, "sink": sink, "softcap": softcap}
    wanted = [*inputs, *list(named.values())[:4], bias, sink]
    out, lse = OP(*inputs, bias, 0.0, 0.5, **options, **named)

    positions = 0.5 * scores_of_positions(named, 5, 7)
    expected = torch.ops.attn_ops.attention_with_lse(*inputs, bias + positions, 0.0, 0.5, **options)
    assert_close((out, lse), tuple(expected), rtol=0, atol=1e-12)
    weights = torch.randn_like(out), torch.randn_like(lse)
    grads = torch.autograd.grad((out, lse), wanted, weights)
    assert_close(grads, torch.autograd.grad(expected, wanted, weights), rtol=0, atol=1e-12)


def test_gradient_of_the_lse_alone():
    inputs, named = make_call(dtype=torch.float64)
    table = named["key_table"]

    def lse(table):
        return OP(*inputs, **(named | {"key_table": table}))[1]

    assert torch.autograd.gradcheck(lse, table)


def test_second_derivative_is_refused():
    inputs, named = make_call()
    out, _lse = OP(*inputs, **named)
    (gradient,) = torch.autograd.grad(out.sum(), inputs[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="attend_by_position: expected at most one deriv"):
        gradient.square().sum().backward()


# Torch scripts its own decompositions when forward mode is first used.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_forward_mode_is_refused():
    (query, *others), named = make_call(requires_grad=False)
    with pytest.raises(NotImplementedError, match=r"attend_by_position: .*forward mode"):
        torch.func.jvp(lambda x: OP(x, *others, **named)[0], (query,), (query,))


def test_sequences_are_refused():
    inputs, named = make_call()
    one = [x[:1] for x in inputs]
    named = {name: x[:1] if name.startswith("position") else x for name, x in named.items()}
    start = torch.tensor([0, 5], dtype=torch.int32)
    with pytest.raises(RuntimeError, match="expected positions or sequences, got both"):
        OP(*one, q_start=start, k_start=start, **named)
