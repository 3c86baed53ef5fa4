/* The public headers as C11: compiling this file is the test. */
#include "attn/attention.h"
#include "attn/attn.h"
#include "attn/linear.h"
#include "attn/mask.h"
#include "attn/merge.h"
#include "attn/runtime.h"
#include "attn/status.h"
#include "attn/step.h"
#include "attn/tensor.h"

attn_mask mask = ATTN_MASK_INIT;
attn_exec exec = ATTN_EXEC_INIT;
attn_attention_forward_args forward = ATTN_ATTENTION_FORWARD_INIT;
attn_attention_backward_args backward = ATTN_ATTENTION_BACKWARD_INIT;
attn_merge_forward_args merge_forward = ATTN_MERGE_FORWARD_INIT;
attn_merge_backward_args merge_backward = ATTN_MERGE_BACKWARD_INIT;
attn_step_args step = ATTN_STEP_INIT;
attn_linear_args linear = ATTN_LINEAR_INIT;
