"""The multi-head layer against its projections and heads, one head at a time."""

import dataclasses
from typing import ClassVar

import pytest
import torch
from torch.testing import assert_close

from attn_modules import (
    Attention,
    AttentionMask,
    CompositionalAttention,
    FourierMix,
    InputProjection,
    InputProjectionConfig,
    MultiHeadDispatch,
    MultiHeadDispatchConfig,
    Pooling,
    RotaryEmbedding,
    ScaledDotProduct,
    Visual,
)
from reference.modules.dense_attention import attend
from reference.modules.rotary import turn

HEADS, MODEL = 2, 8


class Foreign(Attention):
    """A mechanism as others write them: heads folded, one mask, nothing padded."""

    def __init__(self, dropout=0.0):
        super().__init__(dropout)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, q, k, v, att_mask=None):
        self.shapes = [tuple(x.shape) for x in (q, k, v)]
        if isinstance(att_mask, AttentionMask):
            att_mask = att_mask.values
        if att_mask is not None and att_mask.dtype != torch.bool:
            return attend(q, k, v, bias=att_mask)
        return attend(q, k, v, keep=att_mask)


class ForeignByHead(Foreign):
    """The same with heads apart."""

    requires_head_dimension = True


class ForeignOfEqualLengths(Foreign):
    """The same for as many keys as queries, and without masks."""

    requires_same_k_q_dimensions: ClassVar[bool] = True
    supports_attention_mask: ClassVar[bool] = False


ATTENTIONS = {"own": ScaledDotProduct, "folded": Foreign, "by-head": ForeignByHead}
every_attention = pytest.mark.parametrize("kind", ATTENTIONS)


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


def build(attention=None, **options):
    torch.manual_seed(0)
    attention = ScaledDotProduct() if attention is None else attention
    return MultiHeadDispatch(MODEL, HEADS, attention, **options).double()


def dispatch(layer, query, key, value, keep=None, bias=None):
    """Return what `layer` must give; keep and bias broadcast to [B, H, Mq, Mkv]."""
    state = layer.state_dict(keep_vars=True)

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)

    q, k, v = (
        linear(x, f"in_proj_container.{name}_proj").chunk(HEADS, -1)
        for x, name in ((query, "q"), (key, "k"), (value, "v"))
    )
    if layer.rotary_embeddings is not None:
        q, k = map(turn, q), map(turn, k)
    q, k, v = (torch.stack(list(heads), 1) for heads in (q, k, v))
    out = attend(q, k, v, keep, bias)
    return linear(torch.cat(out.unbind(1), -1), "proj")


def assert_like_reference(layer, inputs, keep=None, bias=None, **masks):
    out, expected = layer(*inputs, **masks), dispatch(layer, *inputs, keep, bias)
    assert_close(out, expected)
    parameters = [x for x in (*inputs, *layer.parameters()) if x.requires_grad]
    weight = drawn(*out.shape, seed=5).detach()
    ours, theirs = (torch.autograd.grad(y, parameters, weight) for y in (out, expected))
    assert_close(ours, theirs)


@every_attention
@pytest.mark.parametrize("rotary", [False, True], ids=["plain", "rotary"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"bias": (True, False, True, False)},
        {"dim_key": 4, "dim_value": 12},
        {"kdim": 5, "vdim": 3},
        {"kdim": 5, "vdim": 3, "dim_key": 16, "dim_value": 2},
    ],
    ids=["default", "bare", "some-biases", "widths", "inputs", "all-widths"],
)
def test_output_and_gradients(kind, rotary, options):
    layer = build(ATTENTIONS[kind](), use_rotary_embeddings=rotary, **options)
    inputs = drawn(3, 5, MODEL), drawn(3, 7, layer.kdim), drawn(3, 7, layer.vdim)
    assert_like_reference(layer, inputs)


@every_attention
@pytest.mark.parametrize("separate", [False, True], ids=["shared", "separate"])
def test_self_attention(kind, separate):
    layer = build(ATTENTIONS[kind](), use_separate_proj_weight=separate)
    assert len(list(layer.parameters())) == (8 if separate else 6)
    x = drawn(3, 5, MODEL)
    assert_like_reference(layer, (x, x, x))
    assert torch.equal(layer(x), layer(x, x, x))


def test_values_are_the_keys_by_default():
    layer = build()
    query, key = drawn(2, 5, MODEL), drawn(2, 3, MODEL, seed=1)
    assert torch.equal(layer(query, key), layer(query, key, key))
    value = drawn(2, 5, MODEL, seed=2)
    assert torch.equal(layer(query, value=value), layer(query, query, value))


@every_attention
@pytest.mark.parametrize("batches", [(1, 3, 3), (3, 1, 1), (1, 1, 3), (3, 3, 1), (1, 3, 1)])
def test_a_batch_of_one_goes_with_any(kind, batches):
    layer = build(ATTENTIONS[kind]())
    inputs = [drawn(batch, 5, MODEL, seed=batch) for batch in batches]
    expanded = [x.expand(3, -1, -1) for x in inputs]
    assert_close(layer(*inputs), dispatch(layer, *expanded))
    ours = torch.autograd.grad(layer(*inputs).square().sum(), inputs)
    theirs = torch.autograd.grad(dispatch(layer, *expanded).square().sum(), inputs)
    assert_close(ours, theirs)


MASKS = {
    "all": (4, 6),
    "by-element": (3, 4, 6),
    "by-fold": (3 * HEADS, 4, 6),
    "by-head": (3, HEADS, 4, 6),
    "by-head-for-all": (1, HEADS, 4, 6),
}


def by_element_and_head(mask):
    """Return the mask of a call with B = 3 as [B or 1, H or 1, Mq, Mkv]."""
    if mask.dim() == 4:
        return mask
    if mask.dim() == 3 and mask.shape[0] == 3 * HEADS:
        return mask.unflatten(0, (3, HEADS))
    return mask if mask.dim() == 2 else mask.unsqueeze(1)


@every_attention
@pytest.mark.parametrize("shape", MASKS)
@pytest.mark.parametrize("sort", ["bool", "additive", "AttentionMask"])
@pytest.mark.parametrize("padding", ["bool", "additive"])
def test_masks_and_padding(kind, shape, sort, padding):
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(MASKS[shape], generator=generator) < 0.7
    kept = torch.rand(3, 6, generator=generator) < 0.7
    keep = by_element_and_head(mask) & kept[:, None, None]
    if sort != "bool":
        mask = AttentionMask.from_bool(mask)
        mask = mask.values.squeeze(0) if sort == "additive" and shape == "all" else mask
        mask = mask.values if isinstance(mask, AttentionMask) and sort == "additive" else mask
    if padding == "additive":
        kept = torch.zeros(kept.shape).masked_fill(~kept, -torch.inf)
    inputs = drawn(3, 4, MODEL), drawn(3, 6, MODEL), drawn(3, 6, MODEL)
    layer = build(ATTENTIONS[kind]())
    assert_like_reference(layer, inputs, keep, att_mask=mask, key_padding_mask=kept)


@every_attention
def test_padding_alone_and_mask_alone(kind):
    layer = build(ATTENTIONS[kind]())
    inputs = drawn(3, 4, MODEL), drawn(3, 6, MODEL), drawn(3, 6, MODEL)
    generator = torch.Generator().manual_seed(1)
    kept = torch.rand(3, 6, generator=generator) < 0.7
    assert_like_reference(layer, inputs, kept[:, None, None], key_padding_mask=kept)
    mask = torch.rand(4, 6, generator=generator) < 0.7
    assert_like_reference(layer, inputs, mask, att_mask=mask)
    bias = drawn(4, 6).detach()
    assert_like_reference(layer, inputs, bias=bias, att_mask=bias)


def test_heads_come_as_their_mechanism_takes_them():
    folded, by_head = Foreign(), ForeignByHead()
    x = drawn(3, 5, MODEL)
    assert_close(build(folded)(x), build(by_head)(x))
    assert folded.shapes == [(3 * HEADS, 5, MODEL // HEADS)] * 3
    assert by_head.shapes == [(3, HEADS, 5, MODEL // HEADS)] * 3


def test_heads_are_views_of_the_projections():
    seen = []

    class Watching(ScaledDotProduct):
        def forward(self, q, k, v, att_mask=None, key_padding_mask=None):
            seen.extend((q, k, v))
            return super().forward(q, k, v, att_mask, key_padding_mask)

    build(Watching())(drawn(3, 5, MODEL))
    assert [x.stride() for x in seen] == [(5 * MODEL, MODEL // HEADS, MODEL, 1)] * 3


def test_mechanisms_that_skip_heads_get_the_inputs():
    x = drawn(2, 9, MODEL)
    own_heads = CompositionalAttention(MODEL, HEADS).double()
    for attention in (Pooling(), Visual(MODEL).double(), own_heads):
        layer = build(attention)
        assert torch.equal(layer(x), attention(x, x, x))
        assert [name for name in layer.state_dict() if not name.startswith("attention.")] == []
        kept = torch.arange(9).expand(2, 9) < torch.tensor([[9], [4]])
        expected = attention(x, x, x, key_padding_mask=kept)
        assert torch.equal(layer(x, key_padding_mask=kept), expected)


def test_mechanisms_that_skip_heads_get_one_mask_for_all():
    class ForeignWithOwnHeads(Foreign):
        requires_skip_multi_head = True

    attention, x = ForeignWithOwnHeads(), drawn(2, 5, MODEL)
    kept = torch.arange(5).expand(2, 5) < torch.tensor([[5], [3]])
    out = build(attention)(x, key_padding_mask=kept)
    assert_close(out, attend(x, x, x, kept[:, None]))


def test_mechanisms_without_input_projection_get_slices():
    layer = build(FourierMix())
    assert list(layer.state_dict()) == ["proj.weight", "proj.bias"]
    x = drawn(2, 6, MODEL)
    mixed = [FourierMix()(half, half, half) for half in x.chunk(HEADS, -1)]
    assert_close(layer(x), layer.proj(torch.cat(mixed, -1)))


def test_causal_layers_see_no_future():
    layer = build(ScaledDotProduct(causal=True), use_rotary_embeddings=True)
    x = drawn(1, 6, MODEL).detach()
    expected = layer(x)
    changed = torch.cat([x[:, :3], torch.full_like(x[:, 3:], torch.nan)], 1)
    assert torch.equal(layer(changed)[:, :3], expected[:, :3])


def test_residual_dropout_drops_the_result():
    for attention in (ScaledDotProduct(), Pooling()):
        layer = build(attention, residual_dropout=0.5)
        x = drawn(4, 16, MODEL)
        dropped = layer(x) == 0
        assert 0.3 < dropped.double().mean() < 0.7
        kept = layer.eval()(x)
        assert not (kept == 0).any()


def test_own_projections_are_used():
    container = InputProjection(InputProjectionConfig(MODEL, MODEL)).double()
    out = torch.nn.Linear(MODEL, MODEL).double()
    layer = build(in_proj_container=container, out_proj=out)
    assert layer.in_proj_container is container
    assert layer.proj is out
    x = drawn(2, 5, MODEL)
    assert_like_reference(layer, (x, x, x))


def test_an_empty_sequence_of_layers_leaves_heads_joined():
    out = torch.nn.Sequential()
    layer = build(out_proj=out)
    assert layer.proj is out
    x = drawn(2, 5, MODEL)
    full = build(out_proj=torch.nn.Linear(MODEL, MODEL))
    full.load_state_dict(layer.state_dict(), strict=False)
    torch.nn.init.eye_(full.proj.weight)
    torch.nn.init.zeros_(full.proj.bias)
    torch.testing.assert_close(layer(x), full(x))


def test_state_has_the_names_of_xformers():
    shapes = {name: tuple(x.shape) for name, x in build(dim_value=12).state_dict().items()}
    assert shapes == {
        "in_proj_container.q_proj.weight": (8, 8),
        "in_proj_container.q_proj.bias": (8,),
        "in_proj_container.k_proj.weight": (8, 8),
        "in_proj_container.k_proj.bias": (8,),
        "in_proj_container.v_proj.weight": (12, 8),
        "in_proj_container.v_proj.bias": (12,),
        "proj.weight": (8, 12),
        "proj.bias": (8,),
    }
    some = set(build(bias=(True, False, True, False)).state_dict())
    assert set(shapes) - some == {"in_proj_container.k_proj.bias", "proj.bias"}
    old = {**build().state_dict(), "rotary_embeddings.inv_freq": torch.ones(2)}
    build(use_rotary_embeddings=True).load_state_dict(old)


def test_configuration_says_the_same():
    attention, out = ScaledDotProduct(), torch.nn.Linear(12, MODEL)
    config = MultiHeadDispatchConfig(
        MODEL, HEADS, attention, residual_dropout=0.25, dim_value=12, out_proj=out, kdim=5,
        use_rotary_embeddings=True,
    )  # fmt: skip
    layer = MultiHeadDispatch.from_config(config)
    assert layer.attention is attention
    assert layer.proj is out
    assert (layer.dim_value, layer.kdim, layer.resid_drop.p) == (12, 5, 0.25)
    assert isinstance(layer.rotary_embeddings, RotaryEmbedding)
    names = {field.name for field in dataclasses.fields(MultiHeadDispatchConfig)}
    assert names == set(MultiHeadDispatch.__init__.__annotations__) - {"return"}


def test_compiles_and_exports_whole():
    layer = build(use_rotary_embeddings=True, use_separate_proj_weight=False)
    x = drawn(2, 5, MODEL)
    kept = torch.arange(5).expand(2, 5) < torch.tensor([[5], [3]])
    expected = layer(x, key_padding_mask=kept)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    out = compiled(x, key_padding_mask=kept)
    assert_close(out, expected)
    (ours,) = torch.autograd.grad(out.square().sum(), x)
    (theirs,) = torch.autograd.grad(expected.square().sum(), x)
    assert_close(ours, theirs)
    exported = torch.export.export(layer, (x,), {"key_padding_mask": kept}).module()
    assert_close(exported(x, key_padding_mask=kept), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_dtypes_and_autocast(dtype):
    layer = build(use_rotary_embeddings=True)
    x = drawn(2, 5, MODEL).detach()
    expected = layer(x)
    out = layer.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    assert_close(out.double(), expected, rtol=0.05, atol=0.03)
    with torch.autocast("cpu", dtype):
        out = layer.float()(x.float())
    assert out.dtype == dtype
    assert_close(out.double(), expected, rtol=0.05, atol=0.03)


def test_inputs_that_do_not_fit_are_refused():
    layer = build(kdim=5)
    x, key = drawn(2, 4, MODEL), drawn(2, 4, 5)
    for inputs in (
        (x, x, x),
        (x, key, key),
        (x, key, x[:, :3]),
        (x, key[0], x),
        (x, drawn(3, 4, 5), drawn(3, 4, MODEL)),
    ):
        with pytest.raises(ValueError, match=r"expected query \[B, Mq, 8\], key \[B, Mkv, 5\]"):
            layer(*inputs)
    layer = build(ForeignOfEqualLengths())
    with pytest.raises(ValueError, match="ForeignOfEqualLengths needs, got 3 keys and 4 queries"):
        layer(x, x[:, :3])
    kept = torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(NotImplementedError, match="no key_padding_mask, which ForeignOfEqual"):
        layer(x, key_padding_mask=kept)
    with pytest.raises(NotImplementedError, match="no att_mask, which ForeignOfEqualLengths"):
        layer(x, att_mask=kept)


def test_masks_reach_mechanisms_that_take_them_for_few_rows():
    x, mask = drawn(2, 6, MODEL), torch.ones(6, 6, dtype=torch.bool).tril()
    for kind in ({"name": "nystrom", "num_heads": HEADS}, {"name": "orthoformer"}):
        few, many = (build({**kind, "num_landmarks": count}) for count in (4, 6))
        assert_like_reference(many, (x, x, x), mask, att_mask=mask)
        with pytest.raises(NotImplementedError, match="up to num_landmarks=4 queries or keys"):
            few(x, att_mask=mask)


def test_masks_that_do_not_fit_are_named_by_their_shape():
    x, kept = drawn(2, 4, MODEL), torch.ones(2, 4, dtype=torch.bool)
    mask = torch.ones(2, HEADS + 1, 4, 4, dtype=torch.bool)
    for kind in ATTENTIONS.values():
        with pytest.raises(ValueError, match=r"got \[2, 3, 4, 4\]"):
            build(kind())(x, att_mask=mask, key_padding_mask=kept)
    layer = build(CompositionalAttention(MODEL, HEADS))
    with pytest.raises(ValueError, match=r"H=2.* got \[6, 4, 4\]"):
        layer(x, att_mask=mask.flatten(0, 1))
