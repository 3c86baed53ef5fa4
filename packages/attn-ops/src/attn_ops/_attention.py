"""`memory_efficient_attention`: inputs, operator, mask, result; its other forms share the steps."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor
from torch.jit._builtins import _register_builtin  # torch offers no public way
from torch.nn import Parameter

from attn_ops import _choose, _inputs, _torch_ops, autocast
from attn_ops._autograd import attend, is_differentiated
from attn_ops._canonical import CanonicalInputs, canonical, four_axes, restore_layout
from attn_ops._lower import can_lower, lower
from attn_ops.dropout import draw_seed
from attn_ops.fmha.attn_bias import AttentionBias
from attn_ops.mask import Dropout, MaskSpec
from attn_ops.refusals import in_users_terms

if TYPE_CHECKING:
    from attn_ops.fmha.operators import AttentionOp

_Result = TypeVar("_Result")
_SCALES = (type(None), float, int)  # a tensor would lose its gradient without a word


def memory_efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | AttentionBias | None = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: "AttentionOp | None" = None,
    output_dtype: torch.dtype | None = None,
    sink: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Compute dropout(softmax(scale * query key^T + attn_bias), p) value, exactly.

    Memory grows with Mq alone: nothing of size Mq x Mkv is made, in either direction.
    Differentiable once, in reverse, in query, key, value, a floating-point `attn_bias`, the
    parameters of one, and `sink`.

    Shapes: query [B, Mq, Hq, K]; key [B, Mkv, Hkv, K]; value [B, Mkv, Hkv, Kv]; result
        [B, Mq, Hq, Kv]. Hq is a multiple of Hkv: query head h reads key head h // (Hq // Hkv).
        Or 3-D [B, M, K], one head. Or 5-D [B, M, G, H, K], G groups of H heads; a key and value
        that repeat over H (`expand`) are read once per group. Strides are free but the last, 1.
    Dtypes: query, key and value alike: float32, bfloat16, float16 or float64; `output_dtype`: any
        of the first three, default query's. Under autocast all three are cast, as for SDPA.
    attn_bias: an `AttentionBias`, of the block-diagonal family for B = 1 only; or a tensor of
        query's dtype or float32 added to the scaled scores, or bool, True keeping a key. As a
        tensor [B, Hq, Mq, Mkv] ([B, Mq, Mkv] and [B, G, H, Mq, Mkv] for the other layouts) where
        any extent may be 1; its gradient has its own shape. A number at or below the lowest
        float32 / log2(e), such as `torch.finfo`'s `min` of float32 or bfloat16, counts as -inf
        (for float64 queries only the lowest float64 does).
    p: the probability of dropping, always active if positive; drawn from torch's CPU generator,
        so `torch.manual_seed` repeats it. Kept probabilities are scaled by 1 / (1 - p). A CUDA
        graph cannot capture the draw.
    scale: default K ** -0.5.
    op: None, which chooses the best operators; or (forward, backward), either of which may be
        None: classes such as `fmha.cpu.FwOp` and `fmha.cpu.BwOp`.
    sink: a logit per head that joins the softmax of each query and carries no value: [Hq], or
        [G, H] for 5-D inputs, of query's dtype or float32.
    softcap: positive; scaled scores s become softcap * tanh(s / softcap), before any bias.
    Numerics: softmax in float32 (float64 for float64). A query that sees no key gives 0, and
        gradients of 0. The same bits on every run and for any number of threads.
    Raises: ValueError or TypeError if an argument is wrong, naming it, or if an operator of `op`
        does not serve the call; NotImplementedError if no operator serves the device, the dtype or
        the kind of `attn_bias`, or for a derivative in forward mode or of second order.
    Source: Rabe & Staats 2021, arXiv:2112.05682; Dao 2023, arXiv:2307.08691. Sink: Xiao et al.
        2023, arXiv:2309.17453; softcap: Gemma Team 2024, arXiv:2408.00118.

    >>> import attn_ops as xops
    >>> q, k, v = torch.randn(3, 2, 16, 8, 64).unbind()
    >>> y = xops.memory_efficient_attention(q, k, v)
    >>> y = xops.memory_efficient_attention(q, k, v, p=0.2)
    >>> y = xops.memory_efficient_attention(q, k, v, attn_bias=xops.LowerTriangularMask())
    >>> y.shape
    torch.Size([2, 16, 8, 64])
    """
    arguments = (query, key, value, attn_bias, p, scale, output_dtype)
    if op is None:
        out = attend_at_once(attend, *arguments, sink=sink, softcap=softcap)
        if out is not None:
            return out
    inputs = _inputs.Inputs(*arguments, sink=sink, softcap=softcap)
    forward, backward = _choose.split_pair(op)
    inputs = cast_under_autocast(inputs)
    inputs = _inputs.checked(inputs)
    _choose.choose_forward(inputs, forward)
    call = canonical(inputs, draw_dropout(inputs.p, query.device))
    if wants_gradient(call):
        _choose.choose_backward(inputs, backward)
    out = run(attend, inputs, *call, inputs.scale, output_dtype)
    return restore_layout(out, query)


def attend_at_once(
    operator: Callable[..., _Result],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | AttentionBias | None,
    p: float,
    scale: float | None,
    output_dtype: torch.dtype | None,
    *,
    sink: Tensor | None,
    softcap: float | None,
) -> _Result | None:
    """Return the result of a usual call in little more time than torch's own takes; else None.

    `operator`: `attend` or `attend_with_lse`, which check in C++. What they refuse goes the long
    way, where errors name the arguments.
    """
    if p != 0.0 or sink is not None or softcap is not None or type(scale) not in _SCALES:
        return None
    try:
        if operator is attend and _are_grouped(query, key, value, attn_bias):
            views = four_axes(query, key, value)
            others = (attn_bias, p, scale, output_dtype)
            out: Any = attend_at_once(operator, *views, *others, sink=None, softcap=None)
            return None if out is None else cast("_Result", restore_layout(out, query))
        if query.dim() != 4:
            return None
        is_bare = operator is attend and attn_bias is None and output_dtype is None
        if is_bare and not is_differentiated(query, key, value):
            return _torch_ops.unmasked_attention(query, key, value, scale)
        if isinstance(attn_bias, AttentionBias):
            attn_bias.check_fits(query.shape[1], key.shape[1])
        mask = _mask_to_pass_on(attn_bias)
        return None if mask is None else operator(query, key, value, mask, scale, output_dtype)
    except (AttributeError, IndexError, RuntimeError, ValueError):
        return None


def _are_grouped(query: Tensor, key: Tensor, value: Tensor, attn_bias: object) -> bool:
    """Return whether 5-D inputs fit so well that joining G and H hides no mistake."""
    return (
        query.dim() == 5
        and query.shape[2:4] == key.shape[2:4] == value.shape[2:4]
        and query.stride(4) == key.stride(4) == value.stride(4) == 1
        and not isinstance(attn_bias, Tensor)  # its layout is that of the inputs
    )


def _mask_to_pass_on(attn_bias: Tensor | AttentionBias | None) -> MaskSpec | None:
    """Return what `attn_bias` stands for if an operator for 4-D inputs can check it by itself."""
    if isinstance(attn_bias, Tensor):
        # One that autograd or Dynamo sees is narrowed first where it repeats.
        is_seen = is_differentiated(attn_bias) or torch.compiler.is_compiling()
        is_plain = type(attn_bias) in (Tensor, Parameter)
        return None if is_seen or not is_plain else MaskSpec(bias=attn_bias)
    if not can_lower(attn_bias):
        return None
    mask = lower(attn_bias)
    return mask if mask.bias is None else None


def run(
    operator: Callable[..., _Result], inputs: _inputs.Inputs, *arguments: object, **options: object
) -> _Result:
    """Return what `operator` does with canonical inputs, those of `inputs`.

    Raises: ValueError if the numbers in a mask's tensors do not fit, which the core alone reads.
    """
    try:
        return operator(*arguments, **options)
    except RuntimeError as error:
        refusal = in_users_terms(error, inputs)
        if refusal is None:
            raise
        raise ValueError(refusal) from None


def cast_under_autocast(inputs: _inputs.Inputs) -> _inputs.Inputs:
    """Return the inputs in the dtype of the autocast region, if there is one."""
    if not autocast.is_enabled(inputs.query):
        return inputs
    query, key, value, attn_bias = autocast.cast_inputs(
        inputs.query, inputs.key, inputs.value, inputs.attn_bias
    )
    return replace(inputs, query=query, key=key, value=value, attn_bias=attn_bias)


def wants_gradient(call: CanonicalInputs) -> bool:
    """Return whether autograd will ask for a backward."""
    mask, relative = call.mask, call.mask.relative
    parameters = (mask.bias, relative.slopes, relative.table, mask.sink)
    return is_differentiated(call.query, call.key, call.value, *parameters)


def draw_dropout(p: float, device: torch.device) -> Dropout:
    """Return dropout of newly drawn probabilities; raises as `draw_seed`."""
    return Dropout(p, draw_seed(_inputs.WHO, p, device)) if p else Dropout()


# TorchScript sees a call of the function as the operator of the same signature.
_register_builtin(memory_efficient_attention, "attn_ops::attention")
