"""Print what is built and available, or which operator a call would take: `-m attn_ops.info`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from attn_ops import _WHY_NO_TORCH, __version__, _native

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from attn_ops._inputs import Inputs

_DTYPES = ("float32", "float16", "bfloat16", "float64")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the answer; return 0, or 1 if no operator takes the described call."""
    parser = _make_parser()
    options = parser.parse_args(arguments)
    if all(value is None or value is False for value in vars(options).values()):
        _print(*_describe_build())
        return 0
    if _WHY_NO_TORCH is not None:
        parser.error(f"memory_efficient_attention {_WHY_NO_TORCH}")
    if options.matrix:
        from attn_ops._support_matrix import support_matrix  # noqa: PLC0415  needs torch

        _print(support_matrix())
        return 0
    return _explain(_read_call(parser, options), wants_gradient=options.grad)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m attn_ops.info",
        description="Print what is built and available. With a call described by any of the "
        "options, print which operators it would take and why not the others; the exit status is 1 "
        "if none takes it.",
    )
    call = parser.add_argument_group("a call of memory_efficient_attention")
    call.add_argument("--device", metavar="NAME", help="cpu, cuda, … (default: cpu)")
    call.add_argument("--dtype", choices=_DTYPES, help="of query, key and value (float32)")
    call.add_argument(
        "--shape",
        metavar="N",
        type=int,
        nargs="+",
        help="of query: B M K, B M H K or B M G H K (1 1024 8 64)",
    )
    call.add_argument("--keys", metavar="MKV", type=int, help="number of keys (M)")
    call.add_argument("--key-heads", metavar="HKV", type=int, help="heads of key and value (H)")
    call.add_argument("--value-width", metavar="KV", type=int, help="width of value (K)")
    call.add_argument("--mask", metavar="CLASS", help="name of attn_bias' class (None)")
    call.add_argument("--dropout", metavar="P", type=float, help="p (0)")
    call.add_argument("--output-dtype", choices=_DTYPES, help="(that of query)")
    call.add_argument("--partial", action="store_true", help="memory_efficient_attention_partial")
    call.add_argument("--grad", action="store_true", help="the backward too must be served")
    parser.add_argument(
        "--matrix", action="store_true", help="print a table of masks, directions and devices"
    )
    return parser


def _describe_build() -> Iterator[str]:
    yield f"attn_ops {__version__}"
    for name, answer in _features():
        yield f"{name + ':':<44} {answer}"


def _features() -> Iterator[tuple[str, str]]:
    if _WHY_NO_TORCH is None:
        from attn_ops._choose import ALL_BW_OPS, ALL_FW_OPS  # noqa: PLC0415  needs torch

        for operator in (*ALL_FW_OPS, *ALL_BW_OPS):
            answer = operator.info()
            if not operator.is_available():
                answer += f": {operator.WHY_UNAVAILABLE}"
            elif "cpu" in operator.SUPPORTED_DEVICES and _instruction_set().startswith("none"):
                answer = "unavailable: the CPU has no instruction set, see below"
            yield f"{operator.OPERATOR_CATEGORY}.{operator.NAME}", answer
    else:
        yield "memory_efficient_attention", f"unavailable: {_WHY_NO_TORCH}"
    how_to_add_cuda = "no; install attn-ops again where nvcc is found, without ATTN_CUDA=0"
    yield "build.cuda", "yes" if _native.has_cuda() else how_to_add_cuda
    yield "cpu.instruction_set", _instruction_set()
    yield "cpu.instruction_sets", ", ".join(_native.cpu_isas())
    yield "cpu.threads", str(_native.num_threads())
    if _WHY_NO_TORCH is None:
        import torch  # noqa: PLC0415  may be missing

        yield "pytorch.version", torch.__version__
        yield "pytorch.threads", str(torch.get_num_threads())
        yield "pytorch.cuda", "available" if torch.cuda.is_available() else "not available"
    yield "python.version", sys.version.split()[0]


def _instruction_set() -> str:
    try:
        return _native.cpu_isa()
    except (ValueError, NotImplementedError) as refusal:  # what ATTN_CPU_ISA asks for
        return f"none: {refusal}"


def _read_call(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Inputs:
    """Return the inputs that the options describe; ends the program with a message if they do not.

    The mask stands for its class: operators do not ask which lengths it is made for.
    """
    import torch  # noqa: PLC0415  may be missing

    from attn_ops import _canonical, _inputs, _lower, _support_matrix  # noqa: PLC0415  need torch

    shape = tuple(options.shape or (1, 1024, 8, 64))
    if len(shape) not in (3, 4, 5) or min(shape) < 0:
        parser.error(f"--shape: expected 3, 4 or 5 extents of 0 or more, got {list(shape)}")
    batch, queries, *heads, width = shape
    keys = queries if options.keys is None else options.keys
    if options.key_heads is not None and len(heads) == 1:
        heads = [options.key_heads]
    elif options.key_heads is not None:
        parser.error("--key-heads: expected only with a --shape of 4 extents, B M H K")
    value_width = width if options.value_width is None else options.value_width
    if min(keys, value_width, *heads, 0) < 0:
        parser.error("--keys, --key-heads and --value-width: expected 0 or more")
    mask = options.mask or "None"
    if mask not in _support_matrix.EXAMPLES:
        parser.error(f"--mask: expected one of {', '.join(_support_matrix.EXAMPLES)}, got {mask}")
    output_dtype = None if options.output_dtype is None else getattr(torch, options.output_dtype)
    try:
        inputs = _support_matrix.describe_call(
            options.device or "cpu",
            getattr(torch, options.dtype or "float32"),
            shape,
            (batch, keys, *heads, width),
            (batch, keys, *heads, value_width),
            attn_bias=_support_matrix.EXAMPLES[mask](),
            p=options.dropout or 0.0,
            output_dtype=output_dtype,
            is_partial=options.partial,
        )
        inputs = _inputs.checked(inputs)
        _canonical.check_batch(inputs, _lower.lower(inputs.attn_bias))  # pyright: ignore[reportArgumentType]  an example
    except (RuntimeError, ValueError) as refusal:
        parser.error(" ".join(line.strip() for line in str(refusal).splitlines()))
    return inputs


def _explain(inputs: Inputs, *, wants_gradient: bool) -> int:
    """Print the choice in each direction; return 1 if one has none."""
    from attn_ops import _choose  # noqa: PLC0415  needs torch

    _print(_choose.describe_inputs(inputs), f"     {'device':<11} : {inputs.query.device.type}")
    directions = [("forward", _choose.ALL_FW_OPS), ("backward", _choose.ALL_BW_OPS)]
    status = 0
    for direction, operators in directions[: 2 if wants_gradient else 1]:
        chosen = next((operator for operator in operators if operator.supports(inputs)), None)
        status = 1 if chosen is None else status
        _print(f"{direction}: {'no operator' if chosen is None else f'`{chosen.NAME}`'}")
        _print(_choose.describe_refusals(operators, inputs))
    return status


def _print(*lines: str) -> None:
    for line in lines:
        print(line)


if __name__ == "__main__":
    sys.exit(main())
