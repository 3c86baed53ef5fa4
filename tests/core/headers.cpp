// The public headers as C++17: compiling this file is the test.
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
attn_exec executor = ATTN_EXEC_INIT;
attn_attention_forward_args forward_args = ATTN_ATTENTION_FORWARD_INIT;
attn_attention_backward_args backward_args = ATTN_ATTENTION_BACKWARD_INIT;
attn_merge_forward_args merge_forward_args = ATTN_MERGE_FORWARD_INIT;
attn_merge_backward_args merge_backward_args = ATTN_MERGE_BACKWARD_INIT;
attn_step_args step_args = ATTN_STEP_INIT;
attn_linear_args linear_args = ATTN_LINEAR_INIT;

static_assert(noexcept(attn_attention_forward(nullptr, nullptr)), "nothing crosses the C ABI");
