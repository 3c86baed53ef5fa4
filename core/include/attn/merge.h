/* Merges attention over chunks of the keys into attention over all of them, forward and backward.

   out = sum_c exp(chunk_lses[c] - lse) * chunk_outs[c],  lse = log(sum_c exp(chunk_lses[c])),
   for the outputs and log-sum-exps of the same queries over keys that no two chunks share.
   Letters: B batch, M queries, H query heads, Kv value width. Any extent but Kv may be 0.

   Shapes: each of chunk_outs, and out, [B, M, H, Kv]; each of chunk_lses, and lse, [B, H, M].
           The chunks of one stacked array are tensors that differ in their data pointers alone.
   Strides: any, in elements, if the last of an out is 1 (or its extent is 1); inputs may repeat
           (stride 0), outputs may not overlap.
   Dtypes: chunk_outs alike: float32, bfloat16, float16 or float64. out: the same, or any of the
           first three if the chunks are. Every lse: float32; float64 for float64 chunks.
   Numerics: float32 (float64 for float64). A chunk with lse -infinity adds nothing, whatever its
           out holds, and gets gradients 0; a query without any other gives out 0, lse -infinity.
           Bit-identical for any number of threads.
   Source: Juravsky et al. 2024, arXiv:2402.05099, section 3.1. */
#ifndef ATTN_MERGE_H
#define ATTN_MERGE_H

#include <stddef.h>
#include <stdint.h>

#include "attn/runtime.h"
#include "attn/status.h"
#include "attn/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Initialise with ATTN_MERGE_FORWARD_INIT. */
typedef struct attn_merge_forward_args {
  size_t struct_size;                   /* sizeof(attn_merge_forward_args) */
  int64_t num_chunks;                   /* in [1, 1024]; more: merge the results of merges */
  const attn_tensor* const* chunk_outs; /* [num_chunks] */
  const attn_tensor* const* chunk_lses; /* [num_chunks] */
  const attn_tensor* out;               /* written */
  const attn_tensor* lse;               /* written; NULL: not wanted */
  const attn_exec* exec;                /* NULL: ATTN_EXEC_INIT */
} attn_merge_forward_args;

#define ATTN_MERGE_FORWARD_INIT {sizeof(attn_merge_forward_args), 0, NULL, NULL, NULL, NULL, NULL}

/* Initialise with ATTN_MERGE_BACKWARD_INIT. */
typedef struct attn_merge_backward_args {
  size_t struct_size; /* sizeof(attn_merge_backward_args) */
  int64_t num_chunks;
  const attn_tensor* const* chunk_outs; /* the forward's */
  const attn_tensor* const* chunk_lses; /* the forward's */
  const attn_tensor* grad_out;          /* out's shape and dtype */
  const attn_tensor* grad_lse;          /* lse's shape and dtype, or NULL: 0 */
  /* Written; each the shape and dtype of its chunk's, or NULL: not wanted. */
  const attn_tensor* const* grad_chunk_outs; /* [num_chunks], or NULL: none wanted */
  const attn_tensor* const* grad_chunk_lses; /* [num_chunks], or NULL: none wanted */
  const attn_exec* exec;
} attn_merge_backward_args;

#define ATTN_MERGE_BACKWARD_INIT \
  {sizeof(attn_merge_backward_args), 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL}

/* Writes out, and lse if wanted. Needs no workspace. */
ATTN_API attn_status attn_merge_forward(const attn_merge_forward_args* args,
                                        attn_error* error) ATTN_NOEXCEPT;

/* Writes the wanted gradients of sum(grad_out * out) + sum(grad_lse * lse). */
ATTN_API attn_status attn_merge_backward(const attn_merge_backward_args* args,
                                         attn_error* error) ATTN_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif /* ATTN_MERGE_H */
