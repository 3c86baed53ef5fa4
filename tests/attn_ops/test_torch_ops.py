"""The operators themselves: torch's own checks on each, their errors, and how they are loaded."""

import shutil
import subprocess
import sys

import pytest
import torch

from attn_ops import _library, _torch_ops
from attn_ops.mask import ANCHOR_BOTTOM_RIGHT, Band, Dropout, MaskSpec
from eager_attention import make_inputs
from masked_attention import SCALE, make_call

OPS = torch.ops.attn_ops
SEED = torch.tensor([3, 4])


def arguments(bias_shape, dropout_p, **options):
    query, key, value = make_inputs(hkv=2, **options)
    bias = None if bias_shape is None else torch.randn(bias_shape, dtype=torch.float64)
    dropout = Dropout(dropout_p, None if dropout_p == 0.0 else SEED)
    mask = MaskSpec(Band(right=1, anchor=ANCHOR_BOTTOM_RIGHT), bias, dropout)
    return _torch_ops.arguments(query, key, value, mask, 0.3)


def masked_arguments(name, **options):
    call = make_call(name, **options)
    return _torch_ops.arguments(call.query, call.key, call.value, call.mask, SCALE)


CASES = pytest.mark.parametrize(
    ("bias_shape", "dropout_p"), [(None, 0.0), ((1, 4, 5, 1), 0.0), ((2, 4, 5, 7), 0.25)]
)


@CASES
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("operator", [OPS.attention.default, OPS.attention_with_lse.default])
def test_opcheck_public_operators(operator, bias_shape, dropout_p, requires_grad):
    *inputs, p, scale = arguments(bias_shape, dropout_p, requires_grad=requires_grad)[:6]
    parts = {"band_left": 1, "band_anchor": ANCHOR_BOTTOM_RIGHT, "dropout_seed": SEED}
    torch.library.opcheck(operator, (*inputs, p, scale), parts)


@CASES
@pytest.mark.parametrize("operator", [OPS._attention.default, OPS._attention_forward.default])
def test_opcheck_operators_without_gradient(operator, bias_shape, dropout_p):
    torch.library.opcheck(operator, arguments(bias_shape, dropout_p))


PARTS = ("paged", "blocks", "everything")


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("operator", [OPS._attention.default, OPS._attention_forward.default])
def test_opcheck_every_part(operator, name):
    torch.library.opcheck(operator, masked_arguments(name))


@pytest.mark.parametrize("name", PARTS)
def test_opcheck_backward_of_every_part(name):
    inputs = masked_arguments(name)
    out, lse = OPS._attention_forward(*inputs)
    needed = [inputs[place] is not None for place in _torch_ops.DIFFERENTIABLE]
    torch.library.opcheck(
        OPS._attention_backward.default, (*inputs, out, lse, out, torch.randn_like(lse), *needed)
    )


@pytest.mark.parametrize("operator", [OPS.attention.default, OPS.attention_with_lse.default])
def test_opcheck_public_operators_with_every_part(operator):
    query, key, value, *mask = masked_arguments("everything", requires_grad=True)
    names = [argument.name for argument in operator._schema.arguments][3:]
    torch.library.opcheck(operator, (query, key, value), dict(zip(names, mask, strict=False)))


def test_integers_of_another_dtype_are_refused():
    query, key, value = make_inputs(batch=1)
    for dtype in (torch.int64, torch.uint32):
        start = torch.tensor([0, 5]).to(dtype)
        with pytest.raises(RuntimeError, match="q_start's dtype to be int32"):
            OPS.attention(query, key, value, q_start=start, k_start=start)


def test_tensor_on_another_device_is_refused():
    query, key, value = make_inputs(batch=1)
    for name in ("attn_bias", "q_start", "sink"):
        with pytest.raises(NotImplementedError, match="expected CPU or CUDA tensors"):
            OPS.attention(query, key, value, **{name: torch.zeros(1, 1, 1, 1, device="meta")})


def test_opcheck_output_of_another_dtype():
    inputs = make_inputs(dtype=torch.bfloat16)
    options = {"output_dtype": torch.float32}
    torch.library.opcheck(OPS.attention_with_lse.default, inputs, options)
    arguments = _torch_ops.arguments(*inputs, MaskSpec(), None)
    torch.library.opcheck(OPS._attention.default, (*arguments, torch.float32))


def test_opcheck_unmasked_attention():
    torch.library.opcheck(OPS._unmasked_attention.default, (*make_inputs(), 0.3))


@CASES
@pytest.mark.parametrize("wanted", [(True, True, True), (True, False, False), (False, True, False)])
def test_opcheck_backward(bias_shape, dropout_p, wanted):
    inputs = arguments(bias_shape, dropout_p)
    out, lse = OPS._attention_forward(*inputs)
    needed = (*wanted, bias_shape is not None, False, False, False)
    gradients = (torch.randn_like(out), torch.randn_like(lse))
    torch.library.opcheck(OPS._attention_backward.default, (*inputs, out, lse, *gradients, *needed))


def test_gradient_of_an_absent_input_is_refused():
    inputs = arguments(None, 0.0)
    out, lse = OPS._attention_forward(*inputs)
    needed = (False, False, False, True, False, False, False)
    with pytest.raises(RuntimeError, match="expected gradients of present inputs"):
        OPS._attention_backward(*inputs, out, lse, out, None, *needed)


def test_lse_is_the_log_of_the_sum_of_exponentials():
    query, key, value = make_inputs()
    _, lse = OPS.attention_with_lse(query, key, value, scale=1.0)
    expected = torch.einsum("bihk,bjhk->bhij", query, key).logsumexp(-1)
    torch.testing.assert_close(lse, expected)


@pytest.mark.parametrize(
    "seed", [None, torch.tensor([1.0, 2.0]), torch.tensor([1]), torch.arange(4)[::2]]
)
def test_dropout_needs_a_seed(seed):
    with pytest.raises(RuntimeError, match="needs dropout_seed"):
        OPS.attention(*make_inputs(), p=0.5, dropout_seed=seed)


def test_operator_refuses_what_the_core_refuses():
    query, key, value = make_inputs()
    with pytest.raises(RuntimeError, match="4-D query"):
        OPS.attention(query[0], key[0], value[0])
    with pytest.raises(RuntimeError, match="finite scale"):
        OPS.attention(query, key, value, scale=float("inf"))
    with pytest.raises(RuntimeError, match="key"):
        OPS.attention(query, key[..., :3], value)
    with pytest.raises(RuntimeError, match="bias"):
        OPS.attention(query, key, value, torch.zeros(3, 3, 3, 3, dtype=torch.float64))


def test_anchor_is_read_to_its_last_bit():
    for anchor in (2, -1, 2**32, 2**32 + 1, -(2**63)):
        with pytest.raises(RuntimeError, match=rf"band_anchor to be 0 .* got {anchor}$"):
            OPS.attention(*make_inputs(), band_anchor=anchor)


def test_errors_do_not_name_files():
    query, key, value = make_inputs()
    refused = (
        lambda: OPS.attention(query, key, value[:, :3]),
        lambda: OPS.attention(query[0], key, value),
        lambda: OPS.merge([query], []),
        lambda: OPS._attention_step_(query[0], key, value, key, value, SEED, 1),
    )
    for call in refused:
        with pytest.raises(RuntimeError, match=r"^\w+: expected ") as raised:
            call()
        assert ".cpp" not in str(raised.value)
        assert ".h:" not in str(raised.value)


def test_second_copy_of_the_library_is_refused(tmp_path):
    copy = shutil.copy(_library.torch_library(), tmp_path)
    # The copy finds the core where the original's run path would.
    shutil.copy(_library.library_dir() / "libattn.so.0", tmp_path)
    program = f"import torch; torch.ops.load_library({str(copy)!r}); import attn_ops"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "another copy of libattn_torch.so" in done.stderr
