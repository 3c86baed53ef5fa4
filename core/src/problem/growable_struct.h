// Reads the structs of the C ABI that begin with struct_size and may grow at their end.
#pragma once

#include <cstring>

#include "problem/refusal.h"

namespace attn {

// Far more than any release will need: a larger struct_size was never set.
constexpr size_t kAbsurdStructBytes = 4096;

// Returns what a caller built against any release passed: its fields over `defaults`, which keep
// their values where the caller's struct ends earlier, and whatever comes later left unread.
// `first_release_bytes` is the size with which the struct was born.
template <class Struct>
Struct read_growable(const char* name, const void* given, const Struct& defaults,
                     size_t first_release_bytes) {
  size_t bytes;
  std::memcpy(&bytes, given, sizeof(bytes));
  if (bytes < first_release_bytes || bytes > kAbsurdStructBytes) {
    refuse_argument(
        "expected %s's struct_size to be sizeof the struct (%zu in this release), got %zu; "
        "initialise the struct with its _INIT macro",
        name, sizeof(Struct), bytes);
  }
  Struct result = defaults;
  std::memcpy(&result, given, bytes < sizeof(Struct) ? bytes : sizeof(Struct));
  return result;
}

}  // namespace attn
