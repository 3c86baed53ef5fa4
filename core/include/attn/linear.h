/* A linear layer on a few rows: out = x weight^T + bias. What it costs is reading the weight, which
   it does once, as it lies: the step of a layer projects one row per stream.
   Letters: N rows, E features in, F features out. N and F may be 0.

   Shapes: x [N, E]; weight [F, E]; bias [F]; out [N, F].
   Strides: any, in elements, if the last of each is 1 (or its extent is 1); x and weight may repeat
           (stride 0), out may not overlap.
   Dtypes: all alike: float32, bfloat16, float16 or float64.
   Device: the CPU.
   Numerics: sums in float32 (float64 for float64). A row's bits do not depend on the other rows,
           nor on the number of threads. */
#ifndef ATTN_LINEAR_H
#define ATTN_LINEAR_H

#include <stddef.h>

#include "attn/runtime.h"
#include "attn/status.h"
#include "attn/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Initialise with ATTN_LINEAR_INIT. */
typedef struct attn_linear_args {
  size_t struct_size; /* sizeof(attn_linear_args) */
  const attn_tensor* x;
  const attn_tensor* weight;
  const attn_tensor* bias; /* NULL: 0 */
  const attn_tensor* out;  /* written */
  void* workspace;         /* at least as many bytes as the workspace query says; any alignment */
  size_t workspace_bytes;
  const attn_exec* exec; /* NULL: ATTN_EXEC_INIT */
} attn_linear_args;

#define ATTN_LINEAR_INIT {sizeof(attn_linear_args), NULL, NULL, NULL, NULL, NULL, 0, NULL}

/* Stores the bytes of workspace the call described by `args` needs, O(N E). Data pointers and
   workspace are not read and may be NULL. Validates all but those. */
ATTN_API attn_status attn_linear_workspace(const attn_linear_args* args, size_t* bytes,
                                           attn_error* error) ATTN_NOEXCEPT;

/* Writes out. */
ATTN_API attn_status attn_linear(const attn_linear_args* args, attn_error* error) ATTN_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif /* ATTN_LINEAR_H */
