"""Says why a name of xFormers is not here, to whoever looks it up in the module of that name."""

from typing import Final

_REASONS: Final = {
    "an operator that is not here; op=None takes the device's, fmha.cpu or fmha.cutlass": (
        *("ck", "ck_splitk", "cutlass_blackwell", "flash3", "triton", "triton_splitk"),
        *("MemoryEfficientAttentionCkOp", "MemoryEfficientAttentionSplitKCkOp"),
        *("MemoryEfficientAttentionCutlassBlackwellOp", "TritonFlashAttentionOp"),
        "MemoryEfficientAttentionTritonFwdFlashBwOp",
    ),
    "an inner module; fmha itself has Inputs and the base classes of operators": (
        *("common", "dispatch"),
    ),
    "the base of masks that are tensors; here none is, so use AttentionBias": (
        "AttentionBiasSubTensor",
    ),
    "for keys and values of 8 or 4 bits, which no operator here takes; pass floats": ("InputsFp8",),
    "made of memory_efficient_attention_partial and merge_attentions, which are here alone": (
        "tree_attention",
    ),
    "something other than attention, which is all there is here; use xFormers' or torch's": (
        *("unbind", "get_stack_strides", "rope_padded", "index_select_cat", "scaled_index_add"),
        *("RMSNorm", "SwiGLU", "sequence_parallel_leading_matmul"),
        *("sequence_parallel_trailing_matmul", "fused_allgather_and_linear"),
        *("fused_linear_and_reducescatter", "sparsify24", "sparsify24_like", "sparsify24_ste"),
    ),
}


def no_attribute(module: str, name: str) -> AttributeError:
    """Return the error for a name that `module` lacks, with the reason if xFormers has it."""
    told = f"module {module!r} has no attribute {name!r}"
    for reason, names in _REASONS.items():
        if name in names:
            return AttributeError(f"{told}: in xFormers that is {reason}")
    return AttributeError(told)
