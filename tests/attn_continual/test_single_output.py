"""Single-output attention against torch's attention of every window, in every mode and layout."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from attn_continual import SingleOutputMultiheadAttention
from attn_continual.testing import verify_contract
from reference.continual.single_output import window_outputs

L, N, T, E, H = 4, 3, 10, 8, 2
QUERY_INDICES = [-1, -2, 0, 1, L - 1, -L]
OPTIONS = [
    {},
    {"bias": False},
    {"kdim": 5, "vdim": 6},
    {"kdim": 5, "vdim": 6, "bias": False, "add_zero_attn": True},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True},
]


def name_of(options):
    return "-".join(options) or "plain"


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def make(length=L, dtype=torch.float64, **options):
    """Return a layer, and torch's with the same weights, none of which is zero."""
    torch.manual_seed(0)
    layer = SingleOutputMultiheadAttention(E, H, sequence_len=length, dtype=dtype, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    names = ("bias", "add_bias_kv", "add_zero_attn", "kdim", "vdim")
    known = {name: options[name] for name in names if name in options}
    mha = nn.MultiheadAttention(E, H, batch_first=True, dtype=dtype, **known)
    mha.load_state_dict(layer.state_dict(), strict=True)
    return layer.eval(), mha.eval()


def inputs_for(layer, steps=T):
    """Return query, key and value, [N, T, features]."""
    widths = (layer.embed_dim, layer.kdim, layer.vdim)
    return [random(N, steps, width, seed=seed) for seed, width in enumerate(widths)]


def by_steps(layer, query, key, value, **masks):
    """Return the outputs [N, T', E] that single steps have; masks of windows, and of steps.

    Steps that record gradients and those that do not, which write in place, must agree.
    """
    padding = masks.pop("key_padding_mask", None)
    found = []
    for grad in (True, False):
        layer.clean_state()
        outs = []
        for t in range(query.shape[1]):
            if padding is not None:
                masks["key_padding_mask"] = padding[:, t]
            with torch.set_grad_enabled(grad):
                out = layer.forward_step(query[:, t], key[:, t], value[:, t], **masks)
            outs += [] if out is None else [out]
        found.append(torch.stack(outs, 1))
    if not layer.training:  # dropout would tell them apart
        unit = torch.finfo(found[0].dtype).eps
        assert_close(*found, rtol=16 * unit, atol=16 * unit)
    return found[1]


def assert_windows(layer, mha, inputs, **masks):
    """Hold steps, one chunk and uneven chunks to torch's attention of every window."""
    expected = window_outputs(mha, *inputs, layer.sequence_len, layer.query_index, **masks)
    assert_close(by_steps(layer, *inputs, **masks), expected, rtol=0, atol=1e-12)
    for lengths in ([inputs[0].shape[1]], [1, 2, inputs[0].shape[1] - 3]):
        layer.clean_state()
        chunks = zip(*(x.split(lengths, 1) for x in inputs), strict=True)
        padding = masks.get("key_padding_mask")
        paddings = [None] * len(lengths) if padding is None else padding.split(lengths, 1)
        outs = [
            layer.forward_steps(*chunk, **{**masks, "key_padding_mask": padding})
            for chunk, padding in zip(chunks, paddings, strict=True)
        ]
        got = torch.cat([out for out in outs if out is not None], 1)
        assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
@pytest.mark.parametrize("query_index", QUERY_INDICES)
def test_every_window_has_the_output_of_torch(options, query_index):
    layer, mha = make(query_index=query_index, **options)
    assert_windows(layer, mha, inputs_for(layer))


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("query_index", [-1, 0])
def test_windows_of_one_two_and_almost_all_steps(length, query_index):
    layer, mha = make(length, query_index=query_index)
    assert_windows(layer, mha, inputs_for(layer))


@pytest.mark.parametrize("query_index", QUERY_INDICES)
def test_float32_is_within_a_millionth(query_index):
    layer, mha = make(query_index=query_index)
    layer, x = layer.float(), random(N, T, E)
    expected = window_outputs(mha, x, x, x, L, query_index)
    atol = 1e-6 * expected.abs().max().item()
    single = by_steps(layer, x.float(), x.float(), x.float())
    layer.clean_state()
    for out in (single, layer.forward_steps(x.float())):
        assert_close(out.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("layout", "axes"),
    [
        ({"batch_first": False}, (1, 0, 2)),
        ({"embed_dim_second": True}, (0, 2, 1)),
        ({}, (0, 1, 2)),
    ],
    ids=["time first", "features second", "batch first"],
)
def test_layouts(layout, axes):
    layer, mha = make(query_index=1, **layout)
    x = random(N, T, E)
    given = x.permute(axes)
    verify_contract(layer, given)
    row, attention = mha(x, x, x)
    out, weights = layer(given)
    assert_close(out, row[:, 1:2].permute(axes))
    assert_close(weights, attention[:, 1:2])
    expected = window_outputs(mha, x, x, x, L, 1)
    assert_close(layer.forward_steps(given), expected.permute(axes))
    layer.clean_state()
    for t in range(L):
        step = layer.forward_step(x[:, t])
    assert_close(step, expected[:, 0])
    layer.single_output_forward = False
    out, weights = layer(given)
    assert_close(out, row.permute(axes))
    assert_close(weights, attention)


def make_mask(kind, boolean):
    """Return a mask of the window in which every query sees a key, and those of others differ."""
    shape = {"all": (L, L), "each": (N * H, L, L)}[kind]
    if not boolean:
        return random(*shape, seed=5) * 2
    hidden = random(*shape, seed=6) > 0
    return hidden & ~torch.eye(L, dtype=torch.bool)


@pytest.mark.parametrize("boolean", [True, False], ids=["bool", "float"])
@pytest.mark.parametrize("kind", ["all", "each"])
@pytest.mark.parametrize("query_index", [-1, -3, 0])
@pytest.mark.parametrize("options", [{}, {"add_zero_attn": True}], ids=name_of)
def test_masks_of_the_window(boolean, kind, query_index, options):
    layer, mha = make(query_index=query_index, **options)
    assert_windows(layer, mha, inputs_for(layer), attn_mask=make_mask(kind, boolean))


@pytest.mark.parametrize("query_index", [-1, 1])
@pytest.mark.parametrize("mask", [None, "all", "each"])
def test_padded_keys_are_hidden_whatever_they_hold(query_index, mask):
    layer, mha = make(query_index=query_index, kdim=5, vdim=6)
    inputs = inputs_for(layer)
    padding = torch.zeros(N, T, dtype=torch.bool)
    padding[0, [2, 5, 6]] = padding[2, :3] = True
    masks = {"key_padding_mask": padding}
    if mask is not None:  # of floats: torch wants both masks of one kind
        masks["attn_mask"] = make_mask(mask, boolean=False)
    masks_of_torch = {**masks}
    if mask is not None:
        floats = torch.zeros(N, T, dtype=torch.float64)
        masks_of_torch["key_padding_mask"] = floats.masked_fill(padding, -torch.inf)
    expected = window_outputs(mha, *inputs, L, query_index, **masks_of_torch)
    inputs[1][padding] = torch.nan
    inputs[2][padding] = torch.inf
    assert_close(by_steps(layer, *inputs, **masks), expected)
    layer.clean_state()
    assert_close(layer.forward_steps(*inputs, **masks), expected)


def test_a_query_that_sees_no_key_has_the_bias_alone():
    layer, _ = make()
    x = random(N, L, E)
    padding = torch.zeros(N, L, dtype=torch.bool)
    padding[1] = True
    out = layer.forward_steps(x, key_padding_mask=padding)
    assert_close(out[1, 0], layer.out_proj.bias)


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_forward_is_that_of_torch(options, single):
    layer, mha = make(query_index=-3, single_output_forward=single, **options)
    inputs = inputs_for(layer, steps=7)  # longer than the window, which forward does not have
    rows = slice(-3, -2) if single else slice(None)
    mask = random(N * H, 7, 7, seed=9)
    padding = torch.zeros(N, 7, dtype=torch.float64)
    padding[0, 3] = -torch.inf
    for average, masks in itertools.product(
        (True, False), ({}, {"attn_mask": mask}, {"attn_mask": mask, "key_padding_mask": padding})
    ):
        expected = mha(*inputs, average_attn_weights=average, **masks)
        out, weights = layer(*inputs, average_attn_weights=average, **masks)
        assert_close(out, expected[0][:, rows])
        assert_close(weights, expected[1][..., rows, :])
        out, weights = layer(*inputs, need_weights=False, **masks)
        assert_close(out, expected[0][:, rows])
        assert weights is None


def test_forward_without_weights_returns_the_output_alone():
    layer, mha = make(forward_returns_attn_mask=False)
    x = random(N, T, E)
    assert_close(layer(x), mha(x, x, x)[0][:, -1:])


def test_value_defaults_to_key():
    layer, mha = make()
    query, key, _ = inputs_for(layer)
    expected = window_outputs(mha, query, key, key, L, -1)
    assert_close(layer.forward_steps(query, key), expected)
    assert_close(layer(query, key)[0], mha(query, key, key)[0][:, -1:])
    layer.clean_state()
    steps = [layer.forward_step(query[:, t], key[:, t]) for t in range(T)]
    assert_close(torch.stack(steps[L - 1 :], 1), expected)


def test_the_example_of_the_documentation():
    mha = SingleOutputMultiheadAttention(
        embed_dim=512,
        num_heads=8,
        sequence_len=32,
        dropout=0.0,
        batch_first=True,
        embed_dim_second=True,
    )
    x = torch.rand(10, 512, 32)
    out, attn_mask = mha.forward(x)
    assert attn_mask.shape == (10, 1, 32)
    firsts = mha.forward_steps(x[:, :, :-1])
    last = mha.forward_step(x[:, :, -1])
    assert firsts is None
    assert torch.allclose(out[:, :, -1], last, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
@pytest.mark.parametrize("training", [True, False])
def test_build_from_torch_and_back(options, training):
    torch.manual_seed(1)
    mha = nn.MultiheadAttention(E, H, batch_first=True, dropout=0.25, **options).train(training)
    layer = SingleOutputMultiheadAttention.build_from(mha, L, query_index=-2)
    assert layer.training == training
    assert (layer.dropout, layer.batch_first, layer.query_index) == (0.25, True, -2)
    assert layer.out_proj.weight.data_ptr() != mha.out_proj.weight.data_ptr()
    layer.eval()
    mha.eval()
    inputs = [x.float() for x in inputs_for(layer)]
    expected = window_outputs(mha, *inputs, L, -2)
    assert_close(layer.forward_steps(*inputs), expected, rtol=0, atol=1e-6)
    assert list(layer.state_dict()) == list(mha.state_dict())
    other = nn.MultiheadAttention(E, H, batch_first=True, **options).eval()
    other.load_state_dict(layer.state_dict(), strict=True)
    assert_close(window_outputs(other, *inputs, L, -2), expected)


def test_build_from_keeps_the_layout_and_the_dtype():
    mha = nn.MultiheadAttention(E, H, dtype=torch.float64)
    layer = SingleOutputMultiheadAttention.build_from(mha, L)
    assert not layer.batch_first
    assert layer.in_proj_weight.dtype == torch.float64
    assert SingleOutputMultiheadAttention.build_from(mha, L, batch_first=True).batch_first


def test_dropout_falls_on_weights_in_training_only():
    layer, _ = make(dropout=0.5)
    x = random(1, T, E)
    expected = layer.forward_steps(x)
    layer.train()
    torch.manual_seed(3)
    many = x.expand(2000, -1, -1)
    layer.clean_state()
    for outs in (layer.forward_steps(many, update_state=False), by_steps(layer, many, many, many)):
        assert outs.std(0).min() > 0.1
        assert_close(outs.mean(0), expected[0], rtol=0, atol=0.15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("query_index", [-1, 0])
def test_half_precision(dtype, query_index):
    layer, mha = make(query_index=query_index)
    x = random(N, T, E).to(dtype).double()
    expected = window_outputs(mha, x, x, x, L, query_index)
    low = copy.deepcopy(layer).to(dtype)
    x = x.to(dtype)
    chunk = low.forward_steps(x)
    low.clean_state()
    for out in (chunk, by_steps(low, x, x, x)):
        assert out.dtype == dtype
        assert_close(out.double(), expected, rtol=0, atol=0.15)


def test_autocast():
    layer, mha = make(dtype=torch.float32, add_bias_kv=True)
    x = random(N, T, E, dtype=torch.float32)
    expected = window_outputs(mha, x, x, x, L, -1)
    with torch.autocast("cpu", torch.bfloat16):
        chunk = layer.forward_steps(x)
        layer.clean_state()
        steps = by_steps(layer, x, x, x)
        assert layer.get_state().tensors.key.dtype == torch.float32
    for out in (chunk, steps):
        assert out.dtype == torch.bfloat16
        assert_close(out.float(), expected, rtol=0, atol=0.15)
