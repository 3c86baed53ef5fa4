"""Which mask is served on which device, asked of the operators themselves."""

from collections.abc import Callable
from typing import Final

import torch
from torch._subclasses.fake_tensor import FakeTensorMode  # describes tensors of absent devices

from attn_ops._choose import ALL_BW_OPS, ALL_FW_OPS
from attn_ops._inputs import Inputs
from attn_ops.fmha import attn_bias as masks
from attn_ops.fmha.operators import AttentionOpBase

_STATES: Final = {"cpu": "yes", "cuda": "emulated"}
_TABLES: Final = torch.tensor([[0, 1], [3, 2]], dtype=torch.int32)

EXAMPLES: Final[dict[str, Callable[[], object]]] = {
    "None": lambda: None,
    "Tensor": lambda: torch.zeros(1, 1, 6, 8),
    "LowerTriangularMask": masks.LowerTriangularMask,
    "LowerTriangularMaskWithTensorBias": lambda: masks.LowerTriangularMaskWithTensorBias(
        torch.zeros(1, 1, 6, 8)
    ),
    "LowerTriangularFromBottomRightMask": masks.LowerTriangularFromBottomRightMask,
    "LowerTriangularFromBottomRightLocalAttentionMask": lambda: (
        masks.LowerTriangularFromBottomRightLocalAttentionMask(3)
    ),
    "LocalAttentionFromBottomRightMask": lambda: masks.LocalAttentionFromBottomRightMask(2, 1),
    "BlockDiagonalMask": lambda: masks.BlockDiagonalMask.from_seqlens([2, 4], [3, 5]),
    "BlockDiagonalCausalMask": lambda: masks.BlockDiagonalCausalMask.from_seqlens([2, 4], [3, 5]),
    "BlockDiagonalCausalFromBottomRightMask": lambda: (
        masks.BlockDiagonalCausalFromBottomRightMask.from_seqlens([2, 4], [3, 5])
    ),
    "BlockDiagonalCausalLocalAttentionMask": lambda: masks.BlockDiagonalMask.from_seqlens(
        [2, 4], [3, 5]
    ).make_local_attention(3),
    "BlockDiagonalCausalLocalAttentionFromBottomRightMask": lambda: (
        masks.BlockDiagonalMask.from_seqlens([2, 4], [3, 5]).make_local_attention_from_bottomright(
            3
        )
    ),
    "BlockDiagonalPaddedKeysMask": lambda: masks.BlockDiagonalPaddedKeysMask.from_seqlens(
        [2, 4], 4, [3, 2]
    ),
    "BlockDiagonalCausalWithOffsetPaddedKeysMask": lambda: (
        masks.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([2, 4], 4, [3, 2])
    ),
    "BlockDiagonalCausalLocalAttentionPaddedKeysMask": lambda: (
        masks.BlockDiagonalCausalLocalAttentionPaddedKeysMask.from_seqlens_local(
            [2, 4], 4, [3, 2], 3
        )
    ),
    "BlockDiagonalLocalAttentionPaddedKeysMask": lambda: (
        masks.BlockDiagonalLocalAttentionPaddedKeysMask.from_seqlens_local([2, 4], 4, [3, 2], 2, 1)
    ),
    "BlockDiagonalGappyKeysMask": lambda: masks.BlockDiagonalGappyKeysMask.from_seqlens(
        [2, 4], [1, 4, 8], [3, 2]
    ),
    "BlockDiagonalCausalWithOffsetGappyKeysMask": lambda: (
        masks.BlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens([2, 4], [1, 4, 8], [3, 2])
    ),
    "BlockDiagonalLocalAttentionFromBottomRightGappyKeysMask": lambda: (
        masks.BlockDiagonalLocalAttentionFromBottomRightGappyKeysMask.from_seqlens_local_gappy(
            [2, 4], [1, 4, 8], [3, 2], 2, 1
        )
    ),
    "PagedBlockDiagonalPaddedKeysMask": lambda: masks.PagedBlockDiagonalPaddedKeysMask.from_seqlens(
        [2, 4], [3, 2], _TABLES, 2
    ),
    "PagedBlockDiagonalCausalWithOffsetPaddedKeysMask": lambda: (
        masks.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
            [2, 4], [3, 2], _TABLES, 2
        )
    ),
    "PagedBlockDiagonalCausalLocalPaddedKeysMask": lambda: (
        masks.PagedBlockDiagonalCausalLocalPaddedKeysMask.from_seqlens_local(
            [2, 4], [3, 2], _TABLES, 2, 3
        )
    ),
    "PagedBlockDiagonalGappyKeysMask": lambda: masks.PagedBlockDiagonalGappyKeysMask.from_seqlens(
        [2, 4], [1, 0], [3, 2], _TABLES, 2
    ),
    "PagedBlockDiagonalCausalWithOffsetGappyKeysMask": lambda: (
        masks.PagedBlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens(
            [2, 4], [1, 0], [3, 2], _TABLES, 2
        )
    ),
    "BlockSparseMask": lambda: masks.BlockSparseMask.from_lists([[0], [0, 1], [1, 3]], 2),
    "AlibiBias": lambda: masks.AlibiBias.for_heads(2),
    "RelativePositionBias": lambda: masks.RelativePositionBias(torch.zeros(2, 5)),
    "BiasedMask": lambda: masks.LowerTriangularMask().add_bias(masks.AlibiBias.for_heads(2)),
}
"""A mask of each kind, for 6 queries, 8 keys and 2 heads."""


def describe_call(
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    query_shape: tuple[int, ...] = (1, 6, 2, 8),
    key_shape: tuple[int, ...] = (1, 8, 2, 8),
    value_shape: tuple[int, ...] = (1, 8, 2, 8),
    **options: object,
) -> Inputs:
    """Return inputs to ask operators about; the tensors have no data and need no such device.

    Raises: RuntimeError if torch knows no such device.
    """
    with FakeTensorMode():
        query, key, value = (
            torch.empty(shape, device=device, dtype=dtype)
            for shape in (query_shape, key_shape, value_shape)
        )
    return Inputs(query, key, value, **options)  # pyright: ignore[reportArgumentType]


def support_matrix() -> str:
    """Return a Markdown table of each mask class by direction and device.

    "emulated" stands for kernels that were compiled, and never run but on an emulated GPU.
    """
    columns = [
        (f"{direction} {device.upper()}", device, operators)
        for device in ("cpu", "cuda")
        for direction, operators in (("forward", ALL_FW_OPS), ("backward", ALL_BW_OPS))
    ]
    lines = ["| `attn_bias` | " + " | ".join(title for title, _, _ in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, make in EXAMPLES.items():
        cells = [_answer(operators, device, make()) for _, device, operators in columns]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _answer(operators: tuple[type[AttentionOpBase], ...], device: str, attn_bias: object) -> str:
    # What every CUDA operator of xFormers takes, so that only the mask and the build decide.
    dtype = torch.float16 if device == "cuda" else torch.float32
    call = describe_call(device, dtype, attn_bias=attn_bias)
    return _STATES[device] if any(operator.supports(call) for operator in operators) else "no"
