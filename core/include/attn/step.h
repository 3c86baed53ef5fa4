/* One step of attention over a sliding window: every stream of the batch appends a key and a value
   to its ring buffers, and a query attends to the last of them.

   Step p of a stream lies in slot p mod R of its rings. A stream that has seen position[b] steps
   before writes key, value and padding to slot position[b] mod R, adds 1 to position[b], and its
   query sees the last L steps of those that there are, but for padding: the result is that of
   attn_attention_forward over their keys and values.
   With query_ring the query waits for the keys after it: the one that attends is that of D steps
   ago, from slot position[b] mod D, which this step's query takes. It sees the same keys. What the
   ring held at first attends in streams that have seen fewer than D steps.
   Letters as in attn/attention.h, with B streams; R slots in a ring, L the window, D >= 1 the
   queries that wait. B and Hq may be 0.

   Shapes: query [B, 1, Hq, K]; key [B, 1, Hkv, K]; value [B, 1, Hkv, Kv]; key_ring [B, R, Hkv, K];
           value_ring [B, R, Hkv, Kv]; query_ring [B, D, Hq, K]; attending_query [B, 1, Hq, K];
           padding_ring [B, R]; position, padding and active [B]; bias broadcastable to
           [B, Hq, 1, L]; out [B, 1, Hq, Kv]; lse [B, Hq, 1].
   Strides: as in attn/attention.h; what is written may not overlap.
   Dtypes: queries, key, value and their rings alike, and out and lse, as in attn/attention.h;
           position int64; padding, padding_ring and active bool; bias as in attn/mask.h.
   Numerics: as in attn/attention.h. A stream's bits do not depend on the other streams. */
#ifndef ATTN_STEP_H
#define ATTN_STEP_H

#include <stddef.h>
#include <stdint.h>

#include "attn/attention.h"
#include "attn/runtime.h"
#include "attn/status.h"
#include "attn/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Initialise with ATTN_STEP_INIT. */
typedef struct attn_step_args {
  size_t struct_size; /* sizeof(attn_step_args) */
  const attn_tensor* query;
  const attn_tensor* key;
  const attn_tensor* value;
  const attn_tensor* key_ring;     /* the slot of this step is written */
  const attn_tensor* value_ring;   /* likewise */
  const attn_tensor* query_ring;   /* a slot is written; NULL: this step's own query attends */
  const attn_tensor* position;     /* steps seen before, in [0, 2^62); advanced */
  int64_t window;                  /* L, in [1, R] */
  const attn_tensor* padding;      /* true hides this step's key; NULL: false */
  const attn_tensor* padding_ring; /* the slots that are hidden; NULL: none, and no padding */
  const attn_tensor* active;       /* false: the stream takes no step, its out is 0 and its lse
                                      -infinity; NULL: all take one */
  const attn_tensor* bias;         /* of the window's keys in the order of time, the newest last;
                                      or NULL */
  double scale;
  const attn_tensor* out;             /* written */
  const attn_tensor* lse;             /* written; NULL: not wanted */
  const attn_tensor* attending_query; /* written: what query_ring gave, to streams that take no
                                         step too; NULL: not wanted */
  void* workspace; /* at least as many bytes as the workspace query says; any alignment */
  size_t workspace_bytes;
  const attn_exec* exec; /* NULL: ATTN_EXEC_INIT */
} attn_step_args;

/* clang-format off */
#define ATTN_STEP_INIT                                                                            \
  {sizeof(attn_step_args), NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL,   \
   ATTN_SCALE_DEFAULT, NULL, NULL, NULL, NULL, 0, NULL}
/* clang-format on */

/* Stores the bytes of workspace the call described by `args` needs. Data pointers and workspace
   are not read and may be NULL. Validates all but those. */
ATTN_API attn_status attn_step_workspace(const attn_step_args* args, size_t* bytes,
                                         attn_error* error) ATTN_NOEXCEPT;

/* Takes the step: writes a slot of each ring, position, out, and lse and attending_query if
   wanted. */
ATTN_API attn_status attn_step(const attn_step_args* args, attn_error* error) ATTN_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif /* ATTN_STEP_H */
