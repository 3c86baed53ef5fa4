// Formats the message of a Refusal and throws it.
#include "problem/refusal.h"

#include <cstdarg>
#include <cstdio>

namespace attn {

namespace {

Refusal written(attn_status status, const char* format, std::va_list values) {
  Refusal refusal{.status = status, .message = {}};
  std::vsnprintf(refusal.message, sizeof(refusal.message), format, values);
  return refusal;
}

}  // namespace

void refuse_argument(const char* format, ...) {
  std::va_list values;
  va_start(values, format);
  const Refusal refusal = written(ATTN_ERROR_INVALID_ARGUMENT, format, values);
  va_end(values);
  throw refusal;
}

void refuse_unsupported(const char* format, ...) {
  std::va_list values;
  va_start(values, format);
  const Refusal refusal = written(ATTN_ERROR_UNSUPPORTED, format, values);
  va_end(values);
  throw refusal;
}

void refuse_device(const char* format, ...) {
  std::va_list values;
  va_start(values, format);
  const Refusal refusal = written(ATTN_ERROR_DEVICE, format, values);
  va_end(values);
  throw refusal;
}

}  // namespace attn
