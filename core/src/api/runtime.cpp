// The extern "C" entry points of attn/runtime.h.
#include "attn/runtime.h"

#include "api/guard.h"
#include "dispatch/capabilities.h"
#include "parallel/thread_count.h"

const char* attn_version() noexcept { return ATTN_VERSION; }

attn_status attn_cpu_isa(const char** name, attn_error* error) noexcept {
  return attn::guarded("attn_cpu_isa", error, [&] {
    if (!name) attn::refuse_argument("expected name to be a place to write, got NULL; pass one");
    *name = attn::cpu_isa();
  });
}

const char* attn_cpu_isas() noexcept { return attn::cpu_isas(); }

int32_t attn_num_threads() noexcept { return attn::default_num_threads(); }

int32_t attn_has_cuda() noexcept { return attn::has_cuda(); }

int32_t attn_cuda_device_count() noexcept { return attn::cuda_device_count(); }
