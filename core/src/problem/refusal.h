// The exception by which a call is refused: before anything is written, unless the device failed.
#pragma once

#include "attn/status.h"

namespace attn {

struct Refusal {
  attn_status status;
  char message[448];  // "expected what, got what, what to do", without the caller's name
};

// Throws Refusal with ATTN_ERROR_INVALID_ARGUMENT.
[[noreturn, gnu::cold, gnu::format(printf, 1, 2)]] void refuse_argument(const char* format, ...);

// Throws Refusal with ATTN_ERROR_UNSUPPORTED.
[[noreturn, gnu::cold, gnu::format(printf, 1, 2)]] void refuse_unsupported(const char* format, ...);

// Throws Refusal with ATTN_ERROR_DEVICE: of a call that may have begun to write.
[[noreturn, gnu::cold, gnu::format(printf, 1, 2)]] void refuse_device(const char* format, ...);

}  // namespace attn
