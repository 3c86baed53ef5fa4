/* Exact scaled-dot-product attention, forward and backward.

   out = dropout(softmax(scale * query key^T + bias)) value, each query over the keys its mask lets
   it see. Letters: B batch, Mq queries, Mkv keys, Hq query heads, Hkv key/value heads, K query/key
   width, Kv value width. Any extent but Hkv, K and Kv may be 0.

   Shapes: query [B, Mq, Hq, K]; key [B, Mkv, Hkv, K]; value [B, Mkv, Hkv, Kv]; out [B, Mq, Hq, Kv];
           lse [B, Hq, Mq]. Hq is a multiple of Hkv: query head h reads key head h / (Hq / Hkv).
   Strides: any, in elements, if the last is 1 (or its extent is 1); inputs may repeat (stride 0),
           outputs may not overlap.
   Memory: what is written, and the workspace, lies apart from every other argument. What can be
           told at once is refused: equal data pointers, and two without gaps that overlap.
   Dtypes: query, key and value alike: float32, bfloat16, float16 or float64. out: the same, or
           any of the first three if the inputs are. lse: float32; float64 for float64 inputs.
   Numerics: softmax and accumulation in float32 (float64 for float64), in which a subnormal number
           may count as 0. A query that sees no key gives out 0, lse -infinity and gradients 0.
           Bit-identical for any number of threads.
   Source: Rabe & Staats 2021, arXiv:2112.05682; Dao 2023, arXiv:2307.08691. */
#ifndef ATTN_ATTENTION_H
#define ATTN_ATTENTION_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "attn/mask.h"
#include "attn/runtime.h"
#include "attn/status.h"
#include "attn/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Stands for K^-0.5 in a `scale` field. Any finite scale is taken as it is: one that carries scores
   beyond the largest float32 (float64 for float64), as from 1e38 on, gives NaN. */
#define ATTN_SCALE_DEFAULT ((double)INFINITY)

/* Initialise with ATTN_ATTENTION_FORWARD_INIT. */
typedef struct attn_attention_forward_args {
  size_t struct_size; /* sizeof(attn_attention_forward_args) */
  const attn_tensor* query;
  const attn_tensor* key;
  const attn_tensor* value;
  const attn_mask* mask; /* NULL: every query sees every key */
  double scale;
  const attn_tensor* out; /* written */
  const attn_tensor* lse; /* written: natural log of the sum of exponentials; NULL: not wanted */
  void* workspace;        /* at least as many bytes as the workspace query says; any alignment */
  size_t workspace_bytes;
  const attn_exec* exec; /* NULL: ATTN_EXEC_INIT */
} attn_attention_forward_args;

/* clang-format off */
#define ATTN_ATTENTION_FORWARD_INIT                                                  \
  {sizeof(attn_attention_forward_args), NULL, NULL, NULL, NULL, ATTN_SCALE_DEFAULT,  \
   NULL, NULL, NULL, 0, NULL}
/* clang-format on */

/* Initialise with ATTN_ATTENTION_BACKWARD_INIT. */
typedef struct attn_attention_backward_args {
  size_t struct_size; /* sizeof(attn_attention_backward_args) */
  const attn_tensor* query;
  const attn_tensor* key;
  const attn_tensor* value;
  const attn_mask* mask;          /* as in the forward, dropout's seed and offset included */
  double scale;                   /* as in the forward */
  const attn_tensor* out;         /* the forward's */
  const attn_tensor* lse;         /* the forward's */
  const attn_tensor* grad_out;    /* out's shape and dtype */
  const attn_tensor* grad_lse;    /* lse's shape and dtype, or NULL: 0 */
  const attn_tensor* grad_query;  /* written; query's shape and dtype, or NULL: not wanted */
  const attn_tensor* grad_key;    /* written; key's shape and dtype, or NULL */
  const attn_tensor* grad_value;  /* written; value's shape and dtype, or NULL */
  const attn_tensor* grad_bias;   /* written; the bias' own shape and dtype, summed over the axes it
                                     broadcasts (extent 1), or NULL */
  const attn_tensor* grad_slopes; /* written; the shape and dtype of mask's relative.slopes */
  const attn_tensor* grad_table;  /* written; the shape and dtype of mask's relative.table */
  const attn_tensor* grad_sink;   /* written; the shape and dtype of mask's sink */
  /* Written; the shapes and dtypes of mask's positions.query, .key_table, .key and .query_table. */
  const attn_tensor* grad_position_query;
  const attn_tensor* grad_key_table;
  const attn_tensor* grad_position_key;
  const attn_tensor* grad_query_table;
  void* workspace;
  size_t workspace_bytes;
  const attn_exec* exec;
} attn_attention_backward_args;

/* clang-format off */
#define ATTN_ATTENTION_BACKWARD_INIT                                                   \
  {sizeof(attn_attention_backward_args), NULL, NULL, NULL, NULL, ATTN_SCALE_DEFAULT,   \
   NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, \
   NULL, NULL, 0, NULL}
/* clang-format on */

/* Stores the bytes of workspace the call described by `args` needs. Only shapes, dtypes, the mask
   and exec are read: data pointers and workspace may be NULL. Validates all but those. */
ATTN_API attn_status attn_attention_forward_workspace(const attn_attention_forward_args* args,
                                                      size_t* bytes,
                                                      attn_error* error) ATTN_NOEXCEPT;

/* Writes out, and lse if wanted. */
ATTN_API attn_status attn_attention_forward(const attn_attention_forward_args* args,
                                            attn_error* error) ATTN_NOEXCEPT;

/* As attn_attention_forward_workspace, for the backward. */
ATTN_API attn_status attn_attention_backward_workspace(const attn_attention_backward_args* args,
                                                       size_t* bytes,
                                                       attn_error* error) ATTN_NOEXCEPT;

/* Writes the wanted gradients of sum(grad_out * out) + sum(grad_lse * lse). */
ATTN_API attn_status attn_attention_backward(const attn_attention_backward_args* args,
                                             attn_error* error) ATTN_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif /* ATTN_ATTENTION_H */
