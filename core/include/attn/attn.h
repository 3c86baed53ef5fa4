/* attn: exact attention for CPUs and GPUs behind a C ABI. Includes every public header.

   A struct that begins with struct_size may grow at its end in later releases. Initialise it with
   its _INIT macro, which sets struct_size to the size that the caller's header knows: a library of
   a later release fills in what is missing, with what the macro gave then. A library of an earlier
   one takes the struct if the fields that it does not know are 0, which is their default; otherwise
   it returns ATTN_ERROR_UNSUPPORTED. No struct_size is more than 4096. */
#ifndef ATTN_ATTN_H
#define ATTN_ATTN_H

#include "attn/attention.h"
#include "attn/linear.h"
#include "attn/mask.h"
#include "attn/merge.h"
#include "attn/runtime.h"
#include "attn/status.h"
#include "attn/step.h"
#include "attn/tensor.h"

#endif /* ATTN_ATTN_H */
