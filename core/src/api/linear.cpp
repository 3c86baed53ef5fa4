// The extern "C" entry points of attn/linear.h.
#include "attn/linear.h"

#include "api/guard.h"
#include "dispatch/linear.h"

using Data = attn::TensorReader::Data;

attn_status attn_linear_workspace(const attn_linear_args* args, size_t* bytes,
                                  attn_error* error) noexcept {
  return attn::guarded("attn_linear_workspace", error, [&] {
    attn::require_bytes(bytes);
    *bytes = attn::linear_workspace(attn::read_linear(args, Data::kIgnored));
  });
}

attn_status attn_linear(const attn_linear_args* args, attn_error* error) noexcept {
  return attn::guarded("attn_linear", error,
                       [&] { attn::linear(attn::read_linear(args, Data::kUsed)); });
}
