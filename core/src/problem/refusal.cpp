// Formats the message of a Refusal and throws it.
#include "problem/refusal.h"

#include <cstdarg>
#include <cstdio>

namespace attn {

void refuse_argument(const char* format, ...) {
  Refusal refusal{.status = ATTN_ERROR_INVALID_ARGUMENT, .message = {}};
  std::va_list values;
  va_start(values, format);
  std::vsnprintf(refusal.message, sizeof(refusal.message), format, values);
  va_end(values);
  throw refusal;
}

void refuse_unsupported(const char* format, ...) {
  Refusal refusal{.status = ATTN_ERROR_UNSUPPORTED, .message = {}};
  std::va_list values;
  va_start(values, format);
  std::vsnprintf(refusal.message, sizeof(refusal.message), format, values);
  va_end(values);
  throw refusal;
}

}  // namespace attn
