"""Out-variant attention on any array with DLPack or the buffer protocol."""



from collections.abc import Sequence
from attn_ops.array import Array

UNBOUNDED: int = 9223372036854775807

ANCHOR_TOP_LEFT: int = 0

ANCHOR_BOTTOM_RIGHT: int = 1

def attention_forward(query: Array, key: Array, value: Array, out: Array, lse: Array | None = None, *, bias: Array | None = None, band_left: int = UNBOUNDED, band_right: int = UNBOUNDED, band_anchor: int = ANCHOR_TOP_LEFT, dropout_p: float = 0.0, dropout_seed: int = 0, dropout_offset: int = 0, scale: float | None = None, num_threads: int = 0, stream: int | None = None, workspace: Array | None = None, dry_run: bool = False) -> int:
    """
    Write exact attention of `query` over `key` and `value` into `out`, and its lse into `lse`.

    Shapes: query [B, Mq, Hq, K]; key [B, Mkv, Hkv, K]; value [B, Mkv, Hkv, Kv]; out [B, Mq, Hq, Kv];
        lse [B, Hq, Mq]; bias broadcastable to [B, Hq, Mq, Mkv]. Hq is a multiple of Hkv.
    Units: band_left, band_right in keys each side of the diagonal, UNBOUNDED for no limit; scale
        dimensionless, None for K**-0.5.
    Dtypes: query, key and value alike: float32, bfloat16, float16 or float64; lse float32 (float64
        for float64); bias the query's, float32, or bool (true keeps a key).
    Numerics: softmax in float32 (float64 for float64); a query that sees no key gives out 0 and lse
        -inf. No autograd.
    On a GPU: the call is queued on `stream`, a cudaStream_t as an integer, by default the one that
        query's framework works on: that of DLPack's exchange table (torch), or else the legacy default
        stream, on which arrays with __dlpack__ are ready. It works in `workspace`, an array [bytes] of
        uint8 on the same device, which on the CPU is optional.
    Returns: the bytes of workspace that the call takes; with `dry_run` that is all it does.
    Raises: TypeError if an argument is no array or `out` is read-only; ValueError, naming the
        argument, for shapes, dtypes and strides that do not fit, or too little workspace;
        NotImplementedError if no kernel does it. Nothing is copied, and nothing is written unless the
        call succeeds.
    """

def attention_backward(query: Array, key: Array, value: Array, out: Array, lse: Array, grad_out: Array, *, grad_lse: Array | None = None, grad_query: Array | None = None, grad_key: Array | None = None, grad_value: Array | None = None, grad_bias: Array | None = None, bias: Array | None = None, band_left: int = UNBOUNDED, band_right: int = UNBOUNDED, band_anchor: int = ANCHOR_TOP_LEFT, dropout_p: float = 0.0, dropout_seed: int = 0, dropout_offset: int = 0, scale: float | None = None, num_threads: int = 0, stream: int | None = None, workspace: Array | None = None, dry_run: bool = False) -> int:
    """
    Write the gradients of sum(grad_out * out) + sum(grad_lse * lse) into each grad_* that is given.

    Shapes: as in attention_forward; grad_out as out; grad_lse as lse; grad_query, grad_key, grad_value
        and grad_bias as query, key, value and bias, in their dtypes. grad_bias is summed over the axes
        the bias broadcasts.
    Units, numerics, GPUs, returns, raises: as in attention_forward. `out` and `lse` are the forward's,
        and so are bias, band, dropout and scale.
    """

def merge_forward(chunk_outs: Sequence[Array], chunk_lses: Sequence[Array], out: Array, lse: Array | None = None, *, num_threads: int = 0, stream: int | None = None) -> None:
    """
    Write attention over all keys, from that over chunks of them, into `out`, its lse into `lse`.

    Shapes: each of chunk_outs, and out, [B, M, H, Kv]; each of chunk_lses, and lse, [B, H, M].
    Dtypes: chunk_outs alike: float32, bfloat16, float16 or float64; out the same, or any of the first
        three if they are; every lse float32 (float64 for float64).
    Numerics: float32 (float64 for float64); a chunk with lse -inf adds nothing; without any other, out
        0 and lse -inf.
    On a GPU: `stream` as in attention_forward.
    Raises: TypeError if an argument is no array or `out` is read-only; ValueError, naming the
        argument, for shapes, dtypes and strides that do not fit, or for no chunk or more than 1024.
        Nothing is copied, and nothing is written unless the call succeeds.
    """

def merge_backward(chunk_outs: Sequence[Array], chunk_lses: Sequence[Array], grad_out: Array, grad_lse: Array | None = None, *, grad_chunk_outs: Sequence[Array | None] | None = None, grad_chunk_lses: Sequence[Array | None] | None = None, num_threads: int = 0, stream: int | None = None) -> None:
    """
    Write the gradients of sum(grad_out * out) + sum(grad_lse * lse) into each grad_* that is given.

    Shapes: as in merge_forward; grad_out as out; grad_lse as lse; grad_chunk_outs and grad_chunk_lses
        as chunk_outs and chunk_lses, in their dtypes. An array among them may be None.
    Numerics, raises: as in merge_forward.
    """

def version() -> str:
    """Return the release of libattn, "major.minor.patch"."""

def cpu_isa() -> str:
    """
    Return the name of the CPU kernels in use.

    The best this machine runs, unless the environment's ATTN_CPU_ISA names another.
    Raises: ValueError if ATTN_CPU_ISA names no kernels, NotImplementedError if this
    build or machine lacks them.
    """

def cpu_isas() -> list[str]:
    """
    Return the names of the CPU kernels this build and machine can run, most capable first.
    """

def num_threads() -> int:
    """
    Return the threads a call uses when told 0: ATTN_NUM_THREADS, or the CPUs this
    process may run on.
    """

def has_cuda() -> bool:
    """Return whether this build contains CUDA kernels."""

def cuda_device_count() -> int:
    """
    Return the number of CUDA devices that this process can use; 0 without CUDA kernels in
    this build, or without a driver.
    """

def float32_ceiling(num_threads: int, seconds: float) -> float:
    """
    Return the float32 multiply-adds that `num_threads` threads reach, in FLOP/s.

    Raises: ValueError if num_threads is not in [1, 1024] or seconds not above 0, RuntimeError
    if the system refuses so many threads.
    """

def bfloat16_ceiling(num_threads: int, seconds: float) -> float | None:
    """
    Return the same of bfloat16 dot products, or None where the CPU has none.
    """

def read_ceiling(num_threads: int, seconds: float) -> float:
    """
    Return the bytes per second that `num_threads` threads read from memory.

    Together they read at least 256 MiB, each a part of its own.
    """
