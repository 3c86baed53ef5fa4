"""Attention on a GPU beside torch's SDPA, a matrix product and a copy, all in one run.

python -m attn_ops.benchmark.gpu --out FOLDER writes `gpu.json` and prints a table. Each row is
timed by `triton.testing.do_bench` after a second's rest, so that heat from the last one does not
count.

Conventions: batch x length = 16384 and heads x width = 2048. A forward is 4 B H M^2 K operations,
half under a causal mask; a backward 2.5 times that. SDPA's backend is named, never chosen.
Source: Shah et al. 2024, arXiv:2407.08608, section 4.1.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import attn_ops as xops
from attn_ops.fmha.attn_bias import (
    LowerTriangularMask,
    PagedBlockDiagonalCausalWithOffsetPaddedKeysMask,
)

TOKENS: Final = 16384
WIDTH_OF_ALL_HEADS: Final = 2048
REST_S: Final = 1.0
DEVICE: Final = "cuda"


@dataclass(frozen=True)
class Row:
    """One measurement: our time beside a baseline's."""

    name: str
    ours_ms: float
    baseline: str
    baseline_ms: float
    amount: float
    """What both do: operations, or bytes of keys and values read."""
    unit: str
    """TFLOP/s or TB/s."""

    @property
    def rate(self) -> float:
        """Ours, in `unit`."""
        return self.amount / self.ours_ms / 1e9

    @property
    def ratio(self) -> float:
        """How much faster ours is."""
        return self.baseline_ms / self.ours_ms


def measure(call: Callable[[], object]) -> float:
    """Return the median time of `call`, in milliseconds."""
    from triton import testing  # noqa: PLC0415  # pyright: ignore[reportMissingImports]  with CUDA alone

    time.sleep(REST_S)
    return float(testing.do_bench(call, warmup=50, rep=200, return_mode="median"))  # pyright: ignore[reportArgumentType]


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    """Return random numbers whose gradient is wanted: zeros would run faster."""
    return torch.randn(shape, dtype=dtype, device=DEVICE, requires_grad=True)


@contextmanager
def only(backend: SDPBackend) -> Iterator[None]:
    """Let SDPA use one backend."""
    with sdpa_kernel(backend):
        yield


def backward_of(forward: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], object]:
    """Return a call of the backward alone."""
    out = forward()
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def beside_sdpa(
    name: str,
    backend: SDPBackend,
    *,
    length: int,
    width: int,
    dtype: torch.dtype,
    causal: bool = False,
    with_bias: bool = False,
) -> Iterator[Row]:
    """Yield forward and backward of one shape."""
    batch, heads = TOKENS // length, WIDTH_OF_ALL_HEADS // width
    ours = [random(batch, length, heads, width, dtype=dtype) for _ in range(3)]
    theirs = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in ours]
    mask: Any = LowerTriangularMask() if causal else None
    bias = None
    if with_bias:
        bias = random(1, heads, length, length, dtype=dtype)
        mask = bias
    our_leaves, their_leaves = (x if bias is None else [*x, bias] for x in (ours, theirs))

    def our_forward() -> Tensor:
        query, key, value = ours
        return xops.memory_efficient_attention(query, key, value, mask)

    def their_forward() -> Tensor:
        return scaled_dot_product_attention(*theirs, attn_mask=bias, is_causal=causal)

    operations = 4.0 * batch * heads * length * length * width * (0.5 if causal else 1.0)
    with only(backend), torch.no_grad():
        yield Row(
            f"{name} forward",
            measure(our_forward),
            backend.name,
            measure(their_forward),
            operations,
            "TFLOP/s",
        )
    with only(backend):
        yield Row(
            f"{name} backward",
            measure(backward_of(our_forward, our_leaves)),
            backend.name,
            measure(backward_of(their_forward, their_leaves)),
            2.5 * operations,
            "TFLOP/s",
        )


def decode(name: str, page_size: int | None, copy_tb_s: float) -> Iterator[Row]:
    """Yield one query per sequence over 8192 keys, beside a copy of as many bytes."""
    batch, length, heads, key_heads, width = 64, 8192, 32, 8, 128
    dtype = torch.bfloat16
    key, value = (
        torch.randn(1, batch * length, key_heads, width, dtype=dtype, device=DEVICE) for _ in "kv"
    )
    query = torch.randn(1, batch, heads, width, dtype=dtype, device=DEVICE)
    mask: Any = None
    if page_size is None:
        query = query.view(batch, 1, heads, width)
        key, value = (x.view(batch, length, key_heads, width) for x in (key, value))
    else:
        pages = length // page_size
        table = torch.randperm(batch * pages, device=DEVICE).view(batch, pages).int()
        mask = PagedBlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
            [1] * batch, [length] * batch, table, page_size, device=DEVICE
        )
    moved = 2.0 * key.numel() * key.element_size()
    with torch.no_grad():
        ours = measure(lambda: xops.memory_efficient_attention_forward(query, key, value, mask))
    yield Row(name, ours, "copy", moved / copy_tb_s / 1e9, moved, "TB/s")


def ceilings() -> tuple[float, float]:
    """Return TFLOP/s of a bfloat16 matrix product, and TB/s of a copy, read and written."""
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device=DEVICE) for _ in "ab")
    product = 2.0 * 8192**3 / measure(lambda: a @ b) / 1e9
    source = torch.randn(2**30, device=DEVICE)
    target = torch.empty_like(source)
    copied = 2.0 * source.numel() * source.element_size()
    return product, copied / measure(lambda: target.copy_(source)) / 1e9


def rows(copy_tb_s: float) -> Iterator[Row]:
    """Yield every measurement; the fewer heads matter, the later it comes."""
    flash, efficient = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION
    half = torch.bfloat16
    for width in (128, 64, 256):
        for causal in (False, True):
            name = f"bfloat16 K{width} M4096{' causal' if causal else ''}"
            yield from beside_sdpa(name, flash, length=4096, width=width, dtype=half, causal=causal)
    yield from beside_sdpa(
        "bfloat16 K128 M2048 bias", efficient, length=2048, width=128, dtype=half, with_bias=True
    )
    yield from beside_sdpa(
        "float32 K64 M2048", efficient, length=2048, width=64, dtype=torch.float32
    )
    yield from decode("decode, contiguous keys", None, copy_tb_s)
    yield from decode("decode, pages of 16", 16, copy_tb_s)


def table(found: list[Row], product: float, copy_tb_s: float) -> str:
    """Return what was measured, as Markdown."""
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}",
        f"bfloat16 matrix product {product:.0f} TFLOP/s, copy {copy_tb_s:.2f} TB/s",
        "",
        "| | ours | | of the ceiling | baseline | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        ceiling = product if row.unit == "TFLOP/s" else copy_tb_s
        lines.append(
            f"| {row.name} | {row.ours_ms:.3f} ms | {row.rate:.1f} {row.unit} | "
            f"{100 * row.rate / ceiling:.0f} % | {row.baseline} {row.baseline_ms:.3f} ms | "
            f"{row.ratio:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; return 1 where there is no GPU."""
    parser = argparse.ArgumentParser(description="Time attention on a GPU.")
    parser.add_argument("--out", type=Path, default=Path("attn-benchmark-gpu"))
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("attn_ops.benchmark.gpu: expected a CUDA device, got none\n")
        return 1
    torch.manual_seed(1)
    product, copy_tb_s = ceilings()
    found = list(rows(copy_tb_s))
    text = table(found, product, copy_tb_s)
    options.out.mkdir(parents=True, exist_ok=True)
    results = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "matrix_product_tflop_s": product,
        "copy_tb_s": copy_tb_s,
        "rows": [{**asdict(row), "rate": row.rate, "ratio": row.ratio} for row in found],
    }
    (options.out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "gpu.md").write_text(text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
