"""Exact attention on NumPy arrays, forward and backward, without torch.

Inputs are NumPy arrays, ml_dtypes' bfloat16 among them, or anything else with DLPack or the buffer
protocol in CPU memory; they are read where they lie, never copied. Results are NumPy arrays.

Letters: B batch, Mq queries, Mkv keys, Hq query heads, Hkv key/value heads, K query/key width,
Kv value width. Hq is a multiple of Hkv: query head h reads key head h // (Hq // Hkv).

`Band(left, right, anchor)` bounds the keys that a query sees. With fewer queries than keys, such as
one new query over a cache, `Band(right=0, anchor=ANCHOR_BOTTOM_RIGHT)` is causal from the last key.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from attn_ops import _arrays, _native
from attn_ops._arrays import SupportsDLPack
from attn_ops.mask import ANCHOR_BOTTOM_RIGHT, ANCHOR_TOP_LEFT, Band
from attn_ops.scalars import check_scalars

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from attn_ops._arrays import Array


__all__ = [
    "ANCHOR_BOTTOM_RIGHT",
    "ANCHOR_TOP_LEFT",
    "CAUSAL",
    "EVERY_KEY",
    "Band",
    "Gradients",
    "SupportsDLPack",
    "attention",
    "attention_backward",
    "merge_attentions",
    "merge_attentions_backward",
]

# What the C interface says, in the names of the arguments here.
_C_NAMES = {
    r"^attn_\w+: ": "",
    r"mask's dropout\.p": "dropout_p",
    r"mask's bias": "bias",
    r"exec's num_threads": "num_threads",
    r"DLPack code 0 with (\d+) bits and 1 lanes": r"int\1",
    r"DLPack code 1 with (\d+) bits and 1 lanes": r"uint\1",
}

EVERY_KEY = Band()
CAUSAL = Band(right=0)
"""From the first query and key on."""


class Gradients(NamedTuple):
    """Gradients in the shapes and dtypes of what they are with respect to."""

    query: NDArray[Any]
    key: NDArray[Any]
    value: NDArray[Any]
    bias: NDArray[Any] | None


@overload
def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    bias: Array | None = ...,
    band: Band = ...,
    dropout_p: float = ...,
    dropout_seed: int = ...,
    dropout_offset: int = ...,
    scale: float | None = ...,
    out: NDArray[Any] | None = ...,
    return_lse: Literal[False] = ...,
    num_threads: int = ...,
) -> NDArray[Any]: ...
@overload
def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    bias: Array | None = ...,
    band: Band = ...,
    dropout_p: float = ...,
    dropout_seed: int = ...,
    dropout_offset: int = ...,
    scale: float | None = ...,
    out: NDArray[Any] | None = ...,
    return_lse: Literal[True],
    num_threads: int = ...,
) -> tuple[NDArray[Any], NDArray[Any]]: ...
def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    bias: Array | None = None,
    band: Band = EVERY_KEY,
    dropout_p: float = 0.0,
    dropout_seed: int = 0,
    dropout_offset: int = 0,
    scale: float | None = None,
    out: NDArray[Any] | None = None,
    return_lse: bool = False,
    num_threads: int = 0,
) -> NDArray[Any] | tuple[NDArray[Any], NDArray[Any]]:
    """Return softmax(scale * query key^T + bias) value, and its log-sum-exp if `return_lse`.

    Shapes: query [B, Mq, Hq, K]; key [B, Mkv, Hkv, K]; value [B, Mkv, Hkv, Kv]; bias
        [B, Hq, Mq, Mkv] where any extent may be 1; result [B, Mq, Hq, Kv]; log-sum-exp
        [B, Hq, Mq]. Any strides whose last is 1; any at all for the bias.
    Units: `band` in keys each side of the diagonal, which starts at the first query and key, or
        ends at the last ones if its anchor is ANCHOR_BOTTOM_RIGHT; `scale` is dimensionless,
        default K**-0.5; `num_threads` 0 means ATTN_NUM_THREADS, or the CPUs this process may use.
    Dtypes: query, key and value alike: float32, bfloat16 (ml_dtypes), float16 or float64. `bias` in
        that dtype or float32 is added to the scores; a bool bias keeps a key where it is true.
        `out` the inputs' dtype, or any but float64 for inputs other than float64. Log-sum-exp
        float32, float64 for float64.
    Numerics: softmax in float32 (float64 for float64). A query that sees no key gives 0 and
        log-sum-exp -inf. The result does not depend on `num_threads`. Dropout keeps a probability
        with chance 1 - `dropout_p` and scales it by 1 / (1 - `dropout_p`); its draw depends on
        `dropout_seed`, `dropout_offset` and the position (b, h, i, j) only.
    Raises: TypeError if an argument is no such array or number; ValueError, naming the argument, if
        shapes, dtypes or strides do not fit; NotImplementedError if no kernel does it.
    Source: Rabe & Staats 2021, arXiv:2112.05682; Dao 2023, arXiv:2307.08691.
    """
    query, key, value = _arrays.inputs("attention", query=query, key=key, value=value)
    _check_band("attention", band)
    if out is None:
        out = _arrays.empty("attention", (*query.shape[:-1], value.shape[-1]), query)
    lse = _arrays.empty_lse(query) if return_lse else None
    _call(
        "attention",
        _native.attention_forward,
        query,
        key,
        value,
        out,
        lse,
        bias=bias,
        band_left=band.left,
        band_right=band.right,
        band_anchor=band.anchor,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
        dropout_offset=dropout_offset,
        scale=scale,
        num_threads=num_threads,
    )
    return out if lse is None else (out, lse)


def attention_backward(
    query: Array,
    key: Array,
    value: Array,
    out: Array,
    lse: Array,
    grad_out: Array,
    *,
    grad_lse: Array | None = None,
    bias: Array | None = None,
    bias_gradient: bool = False,
    band: Band = EVERY_KEY,
    dropout_p: float = 0.0,
    dropout_seed: int = 0,
    dropout_offset: int = 0,
    scale: float | None = None,
    num_threads: int = 0,
) -> Gradients:
    """Return the gradients of sum(grad_out * out) + sum(grad_lse * lse).

    Shapes: as in `attention`; grad_out as out; grad_lse as lse. The bias' gradient, computed only
        if `bias_gradient`, is summed over the axes along which the bias has extent 1.
    Units, dtypes, numerics: as in `attention`, whose results `out` and `lse` are, and whose bias,
        band, dropout and scale these must be.
    Raises: as `attention`; ValueError if `bias_gradient` without a floating-point bias.
    Source: Dao 2023, arXiv:2307.08691, algorithm 2.
    """
    query, key, value = _arrays.inputs("attention_backward", query=query, key=key, value=value)
    _check_band("attention_backward", band)
    gradients = Gradients(
        query=_arrays.empty("attention_backward", query.shape, query),
        key=_arrays.empty("attention_backward", key.shape, key),
        value=_arrays.empty("attention_backward", value.shape, value),
        bias=_arrays.empty_bias_gradient(bias) if bias_gradient else None,
    )
    _call(
        "attention_backward",
        _native.attention_backward,
        query,
        key,
        value,
        out,
        lse,
        grad_out,
        grad_lse=grad_lse,
        grad_query=gradients.query,
        grad_key=gradients.key,
        grad_value=gradients.value,
        grad_bias=gradients.bias,
        bias=bias,
        band_left=band.left,
        band_right=band.right,
        band_anchor=band.anchor,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
        dropout_offset=dropout_offset,
        scale=scale,
        num_threads=num_threads,
    )
    return gradients


def merge_attentions(
    chunk_outs: Sequence[Array],
    chunk_lses: Sequence[Array],
    *,
    out: NDArray[Any] | None = None,
    num_threads: int = 0,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Merge attention over chunks of the keys into (output, log-sum-exp) over all of them.

    Shapes: each of `chunk_outs` [B, Mq, Hq, Kv] and of `chunk_lses` [B, Hq, Mq], as `attention`
        returns them with `return_lse`; the results likewise. Stacked on a first axis they do too.
    Dtypes: `chunk_outs` alike; `out` that dtype, or any but float64 for chunks other than float64.
        Log-sum-exp float32, float64 for float64.
    Numerics: float32 (float64 for float64). A chunk with log-sum-exp -inf adds nothing, whatever it
        holds; a query without any other gives 0 and log-sum-exp -inf.
    Raises: as `attention`; ValueError too for no chunk or more than 1024.
    Source: Juravsky et al. 2024, arXiv:2402.05099, section 3.1.
    """
    outs = _arrays.chunks("merge_attentions", chunk_outs, chunk_lses)
    if out is None:
        out = _arrays.empty("merge_attentions", outs[0].shape, outs[0])
    lse = _arrays.empty_lse(outs[0])
    _call(
        "merge_attentions",
        _native.merge_forward,
        outs,
        list(chunk_lses),
        out,
        lse,
        num_threads=num_threads,
    )
    return out, lse


def merge_attentions_backward(
    chunk_outs: Sequence[Array],
    chunk_lses: Sequence[Array],
    grad_out: Array,
    *,
    grad_lse: Array | None = None,
    num_threads: int = 0,
) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Return the gradients of sum(grad_out * out) + sum(grad_lse * lse), two lists of them.

    Shapes, dtypes, raises: as in `merge_attentions`; grad_out as its output; grad_lse as its
        log-sum-exp; the results as `chunk_outs` and `chunk_lses`.
    """
    function = "merge_attentions_backward"
    outs = _arrays.chunks(function, chunk_outs, chunk_lses)
    grad_outs = [_arrays.empty(function, chunk.shape, chunk) for chunk in outs]
    grad_lses = [_arrays.empty_lse(chunk) for chunk in outs]
    _call(
        function,
        _native.merge_backward,
        outs,
        list(chunk_lses),
        grad_out,
        grad_lse,
        grad_chunk_outs=grad_outs,
        grad_chunk_lses=grad_lses,
        num_threads=num_threads,
    )
    return grad_outs, grad_lses


def _call(function: str, native: Callable[..., object], *arrays: object, **options: object) -> None:
    """Run `native`, whose refusals then speak as `function` and name its arguments."""
    check_scalars(function, options)
    try:
        native(*arrays, **options)
    except (TypeError, ValueError, NotImplementedError) as refusal:
        text = str(refusal)
        for pattern, name in _C_NAMES.items():
            text = re.sub(pattern, name, text)
        text = text.removeprefix(f"{native.__name__}: ")
        raise type(refusal)(f"{function}: {text}") from None


def _check_band(function: str, band: object) -> None:
    if not isinstance(band, Band):
        raise TypeError(f"{function}: band must be a Band, such as CAUSAL, got {band!r}")
