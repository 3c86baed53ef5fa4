/* attn: exact attention for CPUs and GPUs behind a C ABI. Includes every public header. */
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
