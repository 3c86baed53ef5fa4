// The extern "C" entry points of attn/merge.h.
#include "attn/merge.h"

#include "api/guard.h"
#include "dispatch/merge.h"

attn_status attn_merge_forward(const attn_merge_forward_args* args, attn_error* error) noexcept {
  return attn::guarded("attn_merge_forward", error,
                       [&] { attn::merge_forward(attn::read_merge_forward(args)); });
}

attn_status attn_merge_backward(const attn_merge_backward_args* args, attn_error* error) noexcept {
  return attn::guarded("attn_merge_backward", error,
                       [&] { attn::merge_backward(attn::read_merge_backward(args)); });
}
