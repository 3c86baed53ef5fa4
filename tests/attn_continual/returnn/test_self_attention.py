"""Self-attention over whole sequences against its formula, pair by pair."""

import pytest
import torch
from torch.testing import assert_close

from attn_continual.returnn import RelPosSelfAttention, SelfAttention, SelfAttentionBase
from reference.continual import returnn as reference
from returnn_layers import HEADS, IN, KEY, OUT, POSITIONS, VALUE, made, source

LAYERS = [pytest.param(SelfAttention, {}, id="content")] + [
    pytest.param(RelPosSelfAttention, options, id=name) for name, options in POSITIONS.items()
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}


def expected(layer, x, length):
    return reference.self_attention(layer, x, lambda _i, j: j < length)


@pytest.mark.parametrize(("cls", "options"), LAYERS)
def test_output_and_gradients(cls, options):
    layer, x = made(cls, **options), source(2, 7).requires_grad_()
    ours = layer(x, axis=1)
    theirs = torch.stack([expected(layer, row, 7) for row in x])
    assert_close(ours, theirs, rtol=0, atol=1e-12)
    weight = source(2, 7, seed=2)[..., :OUT]
    inputs = [x, *layer.parameters()]
    pairs = zip(
        torch.autograd.grad(ours, inputs, weight),
        torch.autograd.grad(theirs, inputs, weight),
        strict=True,
    )
    for mine, right in pairs:
        assert_close(mine, right, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("cls", "options"), LAYERS)
def test_float32(cls, options):
    layer, x = made(cls, **options), source(2, 7)
    with torch.no_grad():
        right = torch.stack([expected(layer, row, 7) for row in x])
        assert_close(layer.float()(x.float()).double(), right, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("cls", [SelfAttention, RelPosSelfAttention])
def test_lengths_and_masks(cls):
    layer, x = made(cls), source(4, 6)
    lengths = torch.tensor([6, 3, 0, 1])
    ours = layer(x, lengths=lengths)
    for n, length in enumerate(lengths.tolist()):
        assert_close(ours[n, :length], expected(layer, x[n], length)[:length])
        assert torch.equal(ours[n, length:], torch.zeros(6 - length, OUT, dtype=x.dtype))
    mask = torch.arange(6) < lengths[:, None]
    assert torch.equal(layer(x, mask=mask), ours)
    mask = torch.tensor([True, False, True, True, False, True])
    ours = layer(x, mask=mask, lengths=torch.tensor(5))
    kept = [0, 2, 3]
    for n in range(4):
        right = reference.self_attention(layer, x[n], lambda _i, j: j in kept)
        assert_close(ours[n, kept], right[kept])
        assert torch.equal(ours[n, [1, 4, 5]], torch.zeros(3, OUT, dtype=x.dtype))


@pytest.mark.parametrize("cls", [SelfAttention, RelPosSelfAttention])
def test_padding_reaches_nothing(cls):
    layer, x = made(cls), source(2, 5)
    lengths = torch.tensor([5, 2])
    spoiled = x.clone()
    spoiled[1, 2:] = torch.nan
    results = []
    for y in (x, spoiled):
        y.requires_grad_()
        out = layer(y, lengths=lengths)
        results.append([out, *torch.autograd.grad(out.sum(), [y, *layer.parameters()])])
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)


@pytest.mark.parametrize("cls", [SelfAttention, RelPosSelfAttention])
def test_any_batch_axes_and_axis(cls):
    layer, x = made(cls), source(2, 3, 4)
    lengths = torch.tensor([[4, 2, 1], [3, 4, 0]])
    whole = layer(x, lengths=lengths)
    for a in range(2):
        for b in range(3):
            alone = layer(x[a, b], lengths=lengths[a, b])
            assert_close(alone, whole[a, b])
    moved = layer(x.movedim(2, 0), axis=0, lengths=lengths)
    assert torch.equal(moved, whole.movedim(2, 0))
    assert torch.equal(layer(x.movedim(2, 1), axis=-3, lengths=lengths), whole.movedim(2, 1))
    for shape in ((0, 4), (2, 0)):
        assert layer(source(*shape)).shape == (*shape, OUT)


def test_weights_convert_to_torch():
    """The mapping of RETURNN's own test: [in, H, 3, d] against torch's [3, H, d, in]."""
    size = 8
    sizes = {"key_dim_total": size, "value_dim_total": size, "num_heads": HEADS}
    layer = SelfAttention(size, size, **sizes).double().eval()
    mha = torch.nn.MultiheadAttention(size, HEADS, batch_first=True, dtype=torch.float64)
    torch.nn.init.normal_(mha.in_proj_bias)
    torch.nn.init.normal_(mha.out_proj.bias)
    by_part = mha.in_proj_weight.view(3, HEADS, size // HEADS, size)
    state = {
        "qkv.weight": by_part.permute(3, 1, 0, 2).reshape(size, -1),
        "qkv.bias": mha.in_proj_bias.view(3, HEADS, -1).transpose(0, 1).reshape(-1),
        "proj.weight": mha.out_proj.weight.T,
        "proj.bias": mha.out_proj.bias,
    }
    layer.load_state_dict(state)
    x = torch.randn(3, 11, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_close(layer(x), mha(x, x, x)[0], rtol=0, atol=1e-12)


def test_parameters_and_initialisation():
    torch.manual_seed(0)
    sizes = {"key_dim_total": 96, "value_dim_total": 64, "num_heads": 4}
    layer = RelPosSelfAttention(80, 48, **sizes, learnable_pos_emb=True)
    shapes = {name: list(weight.shape) for name, weight in layer.state_dict().items()}
    assert shapes == {
        "qkv.weight": [80, 256],
        "qkv.bias": [256],
        "proj.weight": [64, 48],
        "proj.bias": [48],
        "linear_pos.weight": [80, 96],
        "learned_pos_emb.pos_emb": [33, 80],
        "pos_bias_u": [4, 24],
        "pos_bias_v": [4, 24],
    }
    zeros = {"qkv.bias", "proj.bias", "learned_pos_emb.pos_emb"}
    for name, weight in layer.state_dict().items():
        if name in zeros:
            assert not weight.any(), name
        else:
            bound = (6 / sum(weight.shape)) ** 0.5
            assert 0.9 * bound < weight.abs().max() <= bound, name
            assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.15), name


@pytest.mark.parametrize(
    ("options", "features", "linear"),
    [
        ({}, IN, [IN, KEY]),
        ({"separate_pos_emb_per_head": False}, IN, [IN, KEY // HEADS]),
        ({"with_linear_pos": False}, KEY, None),
        ({"with_linear_pos": False, "separate_pos_emb_per_head": False}, KEY // HEADS, None),
    ],
)
def test_sizes_of_positions(options, features, linear):
    layer = made(RelPosSelfAttention, learnable_pos_emb=True, **options)
    assert list(layer.learned_pos_emb.pos_emb.shape) == [7, features]
    assert (None if layer.linear_pos is None else list(layer.linear_pos.weight.shape)) == linear


def test_projection_is_optional():
    sizes = {"key_dim_total": KEY, "value_dim_total": VALUE, "num_heads": HEADS}
    layer = SelfAttention(IN, None, **sizes, with_bias=False).double().eval()
    assert list(layer.state_dict()) == ["qkv.weight"]
    assert layer.out_dim.dimension == VALUE
    x = source(1, 5)
    assert_close(layer(x)[0], expected(layer, x[0], 5))


def test_attention_of_projected_rows():
    layer, x = made(SelfAttention), source(2, 5)
    q, k, v = layer.forward_qkv(x)
    assert [list(t.shape) for t in (q, k, v)] == [[2, 5, 2, 4], [2, 5, 2, 4], [2, 5, 2, 5]]
    assert_close(layer.attention(q, k, v), layer(x))
    assert_close(layer.attention(q[:, 3], k, v), layer(x)[:, 3])
    turned = (t.transpose(0, 1) for t in (q, k, v))
    assert_close(layer.attention(*turned, kv_axis=0), layer(x).transpose(0, 1))


@pytest.mark.parametrize("cls", [SelfAttention, RelPosSelfAttention])
def test_dropout_is_for_training(cls):
    layer, x = made(cls, att_dropout=0.5), source(6)
    still = layer(x)
    torch.manual_seed(0)
    drawn = layer.train()(x.expand(4000, 6, IN))
    assert not torch.equal(drawn[0], drawn[1])
    assert_close(drawn.mean(0), still, rtol=0.0, atol=0.2)
    assert torch.equal(layer.eval()(x), still)


def test_dropout_broadcasts_over_all_but_keys():
    """Each key carries a feature of its own, so that what is missing tells which was dropped."""
    sizes = {"key_dim_total": 2, "value_dim_total": 8, "num_heads": 2}
    layer = SelfAttention(4, None, **sizes, att_dropout=0.5, att_dropout_broadcast=True)
    with torch.no_grad():
        layer.qkv.weight.zero_()
        layer.qkv.weight.view(4, 2, 6)[:, :, 2:] = torch.eye(4)[:, None]
    torch.manual_seed(0)
    out = layer(torch.eye(4).expand(3, 4, 4)).view(3, 4, 2, 4)
    assert 0 < (out == 0).sum() < out.numel()
    assert torch.equal(out, out[:1, :1, :1].expand_as(out))


def test_position_dropout_is_for_training():
    layer, x = made(RelPosSelfAttention, pos_emb_dropout=0.5, att_dropout=0.0), source(2, 5)
    learned = made(
        RelPosSelfAttention, learnable_pos_emb=True, pos_emb_dropout=0.5, att_dropout=0.0
    )
    for module in (layer, learned):
        still = module(x)
        torch.manual_seed(0)
        first, second = module.train()(x), module(x)
        assert not torch.equal(first, second)
        assert torch.equal(module.eval()(x), still)


@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float16, 1e-2), (torch.bfloat16, 6e-2)], ids=["half", "bfloat16"]
)
@pytest.mark.parametrize("cls", [SelfAttention, RelPosSelfAttention])
def test_half_and_autocast(cls, dtype, atol):
    layer, x = made(cls), source(2, 7)
    right = layer(x)
    low = layer.to(dtype)(x.to(dtype))
    assert low.dtype == dtype
    assert_close(low.double(), right, rtol=0, atol=atol)
    layer = made(cls, torch.float32)
    with torch.autocast("cpu", dtype):
        mixed = layer(x.float())
    assert_close(mixed.double(), right, rtol=0, atol=atol)


def test_what_does_not_fit_is_refused():
    sizes = {"key_dim_total": KEY, "value_dim_total": VALUE}
    with pytest.raises(ValueError, match=r"key_dim_total.* to be a multiple of .*num_heads"):
        SelfAttentionBase(IN, OUT, **sizes, num_heads=5)
    with pytest.raises(ValueError, match=r"value_dim_total.* to be a multiple"):
        SelfAttentionBase(IN, OUT, **sizes, num_heads=4)
    with pytest.raises(ValueError, match=r"an even number of features.*got 7"):
        RelPosSelfAttention(7, OUT, **sizes, num_heads=2)
    layer, x = made(SelfAttention), source(2, 5)
    with pytest.raises(ValueError, match=r"source \[..., 6\], features last.*got \[2, 5, 7\]"):
        layer(torch.randn(2, 5, 7))
    with pytest.raises(ValueError, match="axis=-1"):
        layer(x, axis=2)
    with pytest.raises(ValueError, match=r"lengths, int, to broadcast to \[2\], got .*\[3\]"):
        layer(x, lengths=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"lengths, int.*got torch.float32"):
        layer(x, lengths=torch.ones(2))
    with pytest.raises(ValueError, match=r"mask, bool.*got torch.int64"):
        layer(x, mask=torch.ones(2, 5, dtype=torch.int64))
    with pytest.raises(TypeError, match="axis, an int, with a torch tensor"):
        layer(x, axis=layer.in_dim)
    q, k, v = layer.forward_qkv(x)
    with pytest.raises(TypeError, match="axis, an int, with a torch tensor"):
        layer.attention(q, k, v, kv_axis=layer.in_dim)


@pytest.mark.parametrize("name", ["att_dropout", "pos_emb_dropout"])
@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_dropout_is_a_probability(name, p):
    with pytest.raises(ValueError, match=f"RelPosSelfAttention: expected {name}, a probability"):
        made(RelPosSelfAttention, **{name: p})
