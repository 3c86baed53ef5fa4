"""Nystrom attention against its paper's equation, and what surrounds it."""

import functools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from attn_modules import NystromAttention, ScaledDotProduct
from reference.modules.nystrom import convolution, landmarks, nystrom_attention, razavi

B, H, LENGTH, K, KV, LANDMARKS = 2, 3, 23, 6, 4, 5
STEPS = functools.partial(razavi, steps=6)


def qkv(queries=LENGTH, keys=LENGTH):
    generator = torch.Generator().manual_seed(0)
    shapes = (queries, K), (keys, K), (keys, KV)
    return [
        torch.randn(B, H, *shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def made(**options):
    options = {"dropout": 0.0, "num_heads": H, "num_landmarks": LANDMARKS, **options}
    torch.manual_seed(0)
    return NystromAttention(**options).double()


def reference(inputs, invert=STEPS, keep=None):
    """Return [B, H, Mq, Kv]; keep [B, H, M] is of queries too where there are as many."""
    q_keep = keep if inputs[0].shape[2] == inputs[1].shape[2] else None
    out = [
        nystrom_attention(
            *(x[b, h] for x in inputs),
            LANDMARKS,
            invert,
            *(None if kept is None else kept[b, h] for kept in (q_keep, keep)),
        )
        for b in range(B)
        for h in range(H)
    ]
    return torch.stack(out).unflatten(0, (B, H))


def assert_alike(ours, expected, *inputs):
    assert_close(ours, expected)
    weight = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64).reshape(ours.shape)
    gradients = (torch.autograd.grad(out, inputs, weight) for out in (ours, expected))
    for mine, theirs in zip(*gradients, strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize(("queries", "keys"), [(LENGTH, LENGTH), (9, 20), (20, 9)])
def test_output_and_gradients(queries, keys):
    inputs = qkv(queries, keys)
    ours = made()(*inputs)
    assert_alike(ours, reference(inputs), *inputs)
    assert_close(made()(*(x.flatten(0, 1) for x in inputs)), ours.flatten(0, 1))


def test_steps_and_the_exact_inverse_are_choices():
    inputs = qkv()
    ours = made(inv_iterations=3)(*inputs)
    assert_alike(ours, reference(inputs, functools.partial(razavi, steps=3)), *inputs)
    ours = made(use_razavi_pinverse=False)(*inputs)
    assert_alike(ours, reference(inputs, torch.linalg.pinv), *inputs)


def test_the_published_start_is_the_whole_batchs():
    inputs = qkv()
    scores = [
        landmarks(inputs[0][b, h], LANDMARKS) @ landmarks(inputs[1][b, h], LANDMARKS).T / K**0.5
        for b in range(B)
        for h in range(H)
    ]
    start = torch.stack(scores).softmax(-1).sum(-2).max()
    ours = made(pinverse_original_init=True)(*inputs)
    assert_alike(ours, reference(inputs, functools.partial(STEPS, start=start)), *inputs)


@pytest.mark.parametrize("keys", [LENGTH, 20])
def test_padding_is_as_if_it_were_not_there(keys):
    inputs = qkv(LENGTH, keys)
    keep = torch.rand(B, H, keys, generator=torch.Generator().manual_seed(1)) < 0.7
    keep[0, 0] = torch.arange(keys) < 3  # fewer than landmarks
    ours = made()(*inputs, key_padding_mask=keep.flatten(0, 1)[:, None])
    assert_alike(ours, reference(inputs, keep=keep), *inputs)


def test_no_more_rows_than_landmarks_is_exact():
    mask = torch.rand(8, 8, generator=torch.Generator().manual_seed(1)) < 0.8
    keep = torch.tensor([[True] * 8, [True] * 3 + [False] * 5])
    for queries, keys in ((8, 8), (8, 20), (20, 8)):
        inputs = qkv(queries, keys)
        assert torch.equal(made(num_landmarks=8)(*inputs), ScaledDotProduct()(*inputs))
    for causal in (False, True):
        inputs = qkv(8, 8)
        expected = ScaledDotProduct(causal=causal)(*inputs, mask, keep)
        assert torch.equal(made(num_landmarks=8, causal=causal)(*inputs, mask, keep), expected)


def test_more_landmarks_come_nearer():
    inputs = [x.detach() * 0.5 for x in qkv(64, 64)]
    exact = ScaledDotProduct()(*inputs)
    errors = [
        (made(num_landmarks=count, inv_iterations=12)(*inputs) - exact).norm() / exact.norm()
        for count in (4, 60)
    ]
    assert errors[1] < 0.5 * errors[0]


class _Halves(nn.Module):
    """Means of the even and of the odd rows, as landmarks."""

    def forward(self, rows):
        return torch.stack([rows[:, ::2].mean(1), rows[:, 1::2].mean(1)], 1)


def test_landmarks_by_a_module():
    q, k, v = inputs = qkv()
    keep = torch.arange(LENGTH) < 15
    ours = made(landmark_pooling=_Halves())(*inputs, key_padding_mask=keep.expand(B, LENGTH))
    scale = K**-0.5
    q_rows, k_rows = (_Halves()((x * keep[:, None]).flatten(0, 1)) for x in (q, k))
    a = (scale * q_rows @ k_rows.mT).softmax(-1)
    inverse = torch.stack([STEPS(matrix) for matrix in a])
    scores = scale * q_rows @ k.flatten(0, 1).mT
    attended = scores.masked_fill(~keep, -torch.inf).softmax(-1) @ v.flatten(0, 1)
    expected = (scale * q.flatten(0, 1) @ k_rows.mT).softmax(-1) @ inverse @ attended
    assert_alike(ours, expected.unflatten(0, (B, H)), *inputs)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("causal", [False, True])
def test_convolution_of_any_size(size, causal):
    attention = made(conv_kernel_size=size, causal=causal, num_landmarks=LENGTH)
    q, k, v = inputs = qkv()
    keep = torch.arange(LENGTH) % 5 != 2
    mask = keep.expand(B, LENGTH)
    plain = made(causal=causal, num_landmarks=LENGTH)(*inputs, key_padding_mask=mask)
    weight = attention.state_dict()["skip_connection.weight"]
    assert list(weight.shape) == [H, 1, size, 1]
    first = 1 - size if causal else -(size // 2)
    kept = v * keep[:, None]
    added = [
        [convolution(kept[b, h], weight[h].flatten(), first) for h in range(H)] for b in (0, 1)
    ]
    expected = plain + torch.stack([torch.stack(heads) for heads in added])
    dirty = v.masked_fill(~keep[:, None], torch.nan)
    assert_alike(attention(*inputs, key_padding_mask=mask), expected, *inputs)
    assert_close(attention(q, k, dirty, key_padding_mask=mask), expected)


@pytest.mark.parametrize(("length", "size"), [(12, 25), (12, 65), (16, 33), (20, 50)])
@pytest.mark.parametrize("causal", [False, True])
def test_a_convolution_of_one_head_longer_than_the_sequence(length, size, causal):
    """Not of one channel: torch's gradient of that writes out of bounds in float32."""
    options = {"num_heads": 1, "num_landmarks": LENGTH, "conv_kernel_size": size, "causal": causal}
    attention = made(**options).float()
    first = 1 - size if causal else -(size // 2)
    for _ in range(4):
        q, k, v = (torch.randn(2, 1, length, 4) for _ in range(3))
        upstream = torch.randn_like(v)
        attention.zero_grad()
        attention(q, k, v).backward(upstream)
        weight = attention.skip_connection.weight.detach().double().requires_grad_()
        added = [convolution(rows[0].double(), weight.flatten(), first) for rows in v]
        torch.stack(added).backward(upstream[:, 0].double())
        assert_close(attention.skip_connection.weight.grad, weight.grad.float())


def test_a_module_of_v_is_added():
    inputs = qkv()
    ours = made(v_skip_connection=nn.Hardtanh(-0.5, 0.5))(*inputs)
    assert_close(ours, reference(inputs) + inputs[2].clamp(-0.5, 0.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_short_dtypes_are_not_multiplied(dtype, autocast):
    """The inverse multiplies errors by up to 22: one of 2 % shows that it never got short ones."""
    inputs = [x.detach().to(dtype) for x in qkv(64, 64)]
    expected = made()(*(x.double() for x in inputs))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = made().to(dtype)(*inputs)
    assert out.dtype == dtype
    assert (out - expected).norm() < 2 * torch.finfo(dtype).eps * expected.norm()


def test_dropout_drops_elements_of_the_result():
    inputs = [x.detach() for x in qkv()]
    attention, whole = made(dropout=0.3).train(), made()(*inputs)
    out = attention(*inputs)
    assert 0.15 < (out == 0).double().mean() < 0.45
    assert_close(out, torch.where(out == 0, 0, whole / 0.7))


def test_what_cannot_be_honoured_is_refused():
    with pytest.raises(NotImplementedError, match="num_landmarks=5 keys when causal, got 23"):
        made(causal=True)(*qkv())
    with pytest.raises(NotImplementedError, match="up to num_landmarks=5 queries or keys"):
        made()(*qkv(), att_mask=torch.ones(LENGTH, LENGTH, dtype=torch.bool))
    with pytest.raises(ValueError, match="as many keys as queries"):
        made(conv_kernel_size=3)(*qkv(20, 9))
    with pytest.raises(ValueError, match="heads by num_heads=4"):
        made(conv_kernel_size=3, num_heads=4)(*qkv())
    with pytest.raises(ValueError, match="expected key_padding_mask for"):
        made()(*qkv(), key_padding_mask=torch.ones(B, LENGTH - 1, dtype=torch.bool))
    for name in ("num_heads", "num_landmarks", "inv_iterations", "conv_kernel_size"):
        with pytest.raises(ValueError, match=f"expected {name}, an int of 1 or more, got 0"):
            made(**{name: 0})


@pytest.mark.parametrize("num_landmarks", [4, 32], ids=["landmarks", "exact"])
def test_a_convolution_wants_the_heads_it_was_made_for(num_landmarks):
    attention = NystromAttention(0.0, num_heads=4, num_landmarks=num_landmarks, conv_kernel_size=3)
    q = torch.randn(2, 2, 16, 8)
    with pytest.raises(ValueError, match=r"num_heads=4, .* B=2 and H=2"):
        attention(q, q, q)
    attention(*(x.reshape(1, 4, 16, 8) for x in (q, q, q)))
