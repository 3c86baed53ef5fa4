// The extern "C" entry points of attn/step.h.
#include "attn/step.h"

#include "api/guard.h"
#include "dispatch/step.h"

using Data = attn::TensorReader::Data;

attn_status attn_step_workspace(const attn_step_args* args, size_t* bytes,
                                attn_error* error) noexcept {
  return attn::guarded("attn_step_workspace", error, [&] {
    attn::require_bytes(bytes);
    *bytes = attn::step_workspace(attn::read_step(args, Data::kIgnored));
  });
}

attn_status attn_step(const attn_step_args* args, attn_error* error) noexcept {
  return attn::guarded("attn_step", error, [&] { attn::step(attn::read_step(args, Data::kUsed)); });
}
