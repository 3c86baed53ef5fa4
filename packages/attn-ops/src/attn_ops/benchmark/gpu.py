"""Attention on a GPU beside torch's SDPA, a matrix product and a copy, all in one run.

python -m attn_ops.benchmark.gpu --out FOLDER writes `gpu.json` and `gpu.md`, anew after each row,
and prints the rows as they come; --only TEXT measures those whose names hold TEXT. Each row is
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
    difference: float | None
    """Of our results from the baseline's, relative to their norm."""
    target: float | None
    """The least ratio that is meant to be reached."""

    @property
    def rate(self) -> float:
        """Ours, in `unit`."""
        return self.amount / self.ours_ms / 1e9

    @property
    def ratio(self) -> float:
        """How much faster ours is."""
        return self.baseline_ms / self.ours_ms

    @property
    def verdict(self) -> str:
        """Whether the target is met, if there is one."""
        if self.target is None:
            return ""
        return f"{'met' if self.ratio >= self.target else 'MISSED'} {self.target}"


@dataclass(frozen=True)
class Shape:
    """One shape to be timed beside SDPA, forward and backward."""

    name: str
    backend: SDPBackend
    length: int
    width: int
    dtype: torch.dtype
    causal: bool = False
    bias: str = "none"
    """`constant` or `learned`, [1, heads, length, length]; only a learned one has a gradient."""
    targets: tuple[float | None, float | None] = (None, None)
    """Of forward and backward."""


@dataclass(frozen=True)
class Decoding:
    """One query per sequence over 8192 keys."""

    name: str
    page_size: int | None
    target: float


FLASH: Final = SDPBackend.FLASH_ATTENTION
EFFICIENT: Final = SDPBackend.EFFICIENT_ATTENTION
HALF: Final = torch.bfloat16

CASES: Final[tuple[Shape | Decoding, ...]] = (
    Shape("bfloat16 K128 M4096", FLASH, 4096, 128, HALF, targets=(1.0, 0.9)),
    Shape("bfloat16 K128 M2048 bias", EFFICIENT, 2048, 128, HALF, bias="learned", targets=(2, 2)),
    Shape("float32 K64 M2048", EFFICIENT, 2048, 64, torch.float32, targets=(1.5, 1.5)),
    Decoding("decode, contiguous keys", None, 0.85),
    Decoding("decode, pages of 16", 16, 0.85),
    Shape("bfloat16 K128 M4096 causal", FLASH, 4096, 128, HALF, causal=True),
    Shape("bfloat16 K64 M4096", FLASH, 4096, 64, HALF),
    Shape("bfloat16 K64 M4096 causal", FLASH, 4096, 64, HALF, causal=True),
    Shape("bfloat16 K256 M4096", FLASH, 4096, 256, HALF),
    Shape("bfloat16 K128 M2048 constant bias", EFFICIENT, 2048, 128, HALF, bias="constant"),
    Shape("bfloat16 K64 M2048 bias", EFFICIENT, 2048, 64, HALF, bias="learned"),
    Shape("float32 K128 M2048", EFFICIENT, 2048, 128, torch.float32),
)
"""The rows with a target first."""


def measure(call: Callable[[], object]) -> float:
    """Return the median time of `call`, in milliseconds."""
    from triton import testing  # noqa: PLC0415  # pyright: ignore[reportMissingImports]  with CUDA alone

    time.sleep(REST_S)
    return float(testing.do_bench(call, warmup=50, rep=200, return_mode="median"))  # pyright: ignore[reportArgumentType]


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    """Return random numbers whose gradient is wanted: zeros would run faster."""
    return torch.randn(shape, dtype=dtype, device=DEVICE, requires_grad=True)


def difference_of(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest |ours - theirs| / |theirs|, in norms of whole tensors."""
    largest = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        distance = torch.linalg.vector_norm(mine.float() - other.float())
        largest = max(largest, float(distance / torch.linalg.vector_norm(other.float())))
    return largest


def gradients_of(
    forward: Callable[[], Tensor], leaves: list[Tensor], grad: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    """Return a call of the backward alone."""
    out = forward()
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def beside_sdpa(shape: Shape) -> Iterator[Row]:
    """Yield forward and backward of one shape."""
    length, width = shape.length, shape.width
    batch, heads = TOKENS // length, WIDTH_OF_ALL_HEADS // width
    ours = [random(batch, length, heads, width, dtype=shape.dtype) for _ in range(3)]
    theirs = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in ours]
    mask: Any = LowerTriangularMask() if shape.causal else None
    our_leaves, their_leaves = list(ours), list(theirs)
    bias = None
    if shape.bias != "none":
        mask = bias = random(1, heads, length, length, dtype=shape.dtype)
        bias.requires_grad_(shape.bias == "learned")
        if bias.requires_grad:
            our_leaves.append(bias)
            their_leaves.append(bias)

    def our_forward() -> Tensor:
        query, key, value = ours
        return xops.memory_efficient_attention(query, key, value, mask)

    def their_forward() -> Tensor:
        return scaled_dot_product_attention(*theirs, attn_mask=bias, is_causal=shape.causal)

    def row(
        direction: int, mine: Callable[[], object], other: Callable[[], object], difference: float
    ) -> Row:
        operations = 4.0 * batch * heads * length * length * width * (0.5 if shape.causal else 1.0)
        return Row(
            name=f"{shape.name} {('forward', 'backward')[direction]}",
            ours_ms=measure(mine),
            baseline=shape.backend.name,
            baseline_ms=measure(other),
            amount=operations * (1.0, 2.5)[direction],
            unit="TFLOP/s",
            difference=difference,
            target=shape.targets[direction],
        )

    with sdpa_kernel(shape.backend):
        with torch.no_grad():
            difference = difference_of([our_forward().transpose(1, 2)], [their_forward()])
            yield row(0, our_forward, their_forward, difference)
        grad = torch.randn_like(ours[0])
        mine = gradients_of(our_forward, our_leaves, grad)
        other = gradients_of(their_forward, their_leaves, grad.transpose(1, 2).contiguous())
        found = [x.transpose(1, 2) for x in mine()[:3]] + list(mine()[3:])
        yield row(1, mine, other, difference_of(found, list(other())))


def decode(case: Decoding, copy_tb_s: float) -> Iterator[Row]:
    """Yield one query per sequence, beside a copy of as many bytes as its keys and values have."""
    batch, length, heads, key_heads, width = 64, 8192, 32, 8, 128
    key, value = (
        torch.randn(1, batch * length, key_heads, width, dtype=HALF, device=DEVICE) for _ in "kv"
    )
    query = torch.randn(1, batch, heads, width, dtype=HALF, device=DEVICE)
    mask: Any = None
    if case.page_size is None:
        query = query.view(batch, 1, heads, width)
        key, value = (x.view(batch, length, key_heads, width) for x in (key, value))
    else:
        pages = length // case.page_size
        table = torch.randperm(batch * pages, device=DEVICE).view(batch, pages).int()
        mask = PagedBlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
            [1] * batch, [length] * batch, table, case.page_size, device=DEVICE
        )
    moved = 2.0 * key.numel() * key.element_size()
    with torch.no_grad():
        ours = measure(lambda: xops.memory_efficient_attention_forward(query, key, value, mask))
    copy_ms = moved / copy_tb_s / 1e9
    yield Row(case.name, ours, "copy", copy_ms, moved, "TB/s", None, case.target)


def ceilings() -> tuple[float, float]:
    """Return TFLOP/s of a bfloat16 matrix product, and TB/s of a copy, read and written."""
    a, b = (torch.randn(8192, 8192, dtype=HALF, device=DEVICE) for _ in "ab")
    product = 2.0 * 8192**3 / measure(lambda: a @ b) / 1e9
    source = torch.randn(2**30, device=DEVICE)
    target = torch.empty_like(source)
    copied = 2.0 * source.numel() * source.element_size()
    return product, copied / measure(lambda: target.copy_(source)) / 1e9


def rows(case: Shape | Decoding, copy_tb_s: float) -> Iterator[Row]:
    """Yield what is measured of one case."""
    return beside_sdpa(case) if isinstance(case, Shape) else decode(case, copy_tb_s)


def table(found: list[Row], product: float, copy_tb_s: float) -> str:
    """Return what was measured, as Markdown."""
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}",
        f"bfloat16 matrix product {product:.0f} TFLOP/s, copy {copy_tb_s:.2f} TB/s",
        "",
        "| | ours | | of the ceiling | baseline | difference | ratio | target |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        ceiling = product if row.unit == "TFLOP/s" else copy_tb_s
        difference = "" if row.difference is None else f"{row.difference:.1e}"
        lines.append(
            f"| {row.name} | {row.ours_ms:.3f} ms | {row.rate:.1f} {row.unit} | "
            f"{100 * row.rate / ceiling:.0f} % | {row.baseline} {row.baseline_ms:.3f} ms | "
            f"{difference} | {row.ratio:.2f} | {row.verdict} |"
        )
    return "\n".join(lines) + "\n"


def write(folder: Path, found: list[Row], product: float, copy_tb_s: float) -> None:
    """Write what was measured so far."""
    results = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "matrix_product_tflop_s": product,
        "copy_tb_s": copy_tb_s,
        "rows": [
            {**asdict(row), "rate": row.rate, "ratio": row.ratio, "verdict": row.verdict}
            for row in found
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "gpu.md").write_text(table(found, product, copy_tb_s))


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; return 1 where there is no GPU."""
    parser = argparse.ArgumentParser(description="Time attention on a GPU.")
    parser.add_argument("--out", type=Path, default=Path("attn-benchmark-gpu"))
    parser.add_argument("--only", default="", help="rows whose names hold this")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("attn_ops.benchmark.gpu: expected a CUDA device, got none\n")
        return 1
    torch.manual_seed(1)
    product, copy_tb_s = ceilings()
    found: list[Row] = []
    status = 0
    for case in CASES:
        if options.only not in case.name:
            continue
        try:
            for row in rows(case, copy_tb_s):
                found.append(row)
                write(options.out, found, product, copy_tb_s)
                sys.stdout.write(f"{row.name}: ratio {row.ratio:.2f} {row.verdict}\n")
                sys.stdout.flush()
        except RuntimeError as error:  # of ours or of torch's: the other rows are still wanted
            sys.stdout.write(f"{case.name}: {error}\n")
            status = 1
    sys.stdout.write(table(found, product, copy_tb_s))
    return status


if __name__ == "__main__":
    sys.exit(main())
