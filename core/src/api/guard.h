// Keeps exceptions on this side of the C ABI; and the one check that workspace queries share.
#pragma once

#include <cstddef>
#include <cstdio>
#include <exception>
#include <new>

#include "attn/status.h"
#include "problem/refusal.h"

namespace attn {

[[gnu::cold]] inline attn_status report(attn_error* error, attn_status status, const char* function,
                                        const char* reason) noexcept {
  if (error) std::snprintf(error->message, sizeof(error->message), "%s: %s", function, reason);
  return status;
}

// Runs body; what it throws becomes a status and, unless `error` is NULL, a message.
template <class Body>
attn_status guarded(const char* function, attn_error* error, Body body) noexcept {
  try {
    body();
    return ATTN_OK;
  } catch (const Refusal& refusal) {
    return report(error, refusal.status, function, refusal.message);
  } catch (const std::bad_alloc&) {
    return report(error, ATTN_ERROR_OUT_OF_MEMORY, function, "expected free memory, got none");
  } catch (const std::exception& exception) {
    return report(error, ATTN_ERROR_INTERNAL, function, exception.what());
  } catch (...) {
    return report(error, ATTN_ERROR_INTERNAL, function, "an unknown exception; please report it");
  }
}

// Throws Refusal if a workspace query has no place for its answer.
inline void require_bytes(const size_t* bytes) {
  if (!bytes) refuse_argument("expected bytes to be a place to write, got NULL; pass one");
}

}  // namespace attn
