// The extern "C" entry points of attn/attention.h: validate, dispatch, catch.
#include "attn/attention.h"

#include "api/guard.h"
#include "dispatch/attention.h"
#include "problem/read_attention.h"

using Data = attn::TensorReader::Data;

attn_status attn_attention_forward_workspace(const attn_attention_forward_args* args, size_t* bytes,
                                             attn_error* error) noexcept {
  return attn::guarded("attn_attention_forward_workspace", error, [&] {
    attn::require_bytes(bytes);
    *bytes = attn::forward_workspace(attn::read_forward(args, Data::kIgnored));
  });
}

attn_status attn_attention_forward(const attn_attention_forward_args* args,
                                   attn_error* error) noexcept {
  return attn::guarded("attn_attention_forward", error,
                       [&] { attn::forward(attn::read_forward(args, Data::kUsed)); });
}

attn_status attn_attention_backward_workspace(const attn_attention_backward_args* args,
                                              size_t* bytes, attn_error* error) noexcept {
  return attn::guarded("attn_attention_backward_workspace", error, [&] {
    attn::require_bytes(bytes);
    *bytes = attn::backward_workspace(attn::read_backward(args, Data::kIgnored));
  });
}

attn_status attn_attention_backward(const attn_attention_backward_args* args,
                                    attn_error* error) noexcept {
  return attn::guarded("attn_attention_backward", error,
                       [&] { attn::backward(attn::read_backward(args, Data::kUsed)); });
}
