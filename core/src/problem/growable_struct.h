// Reads the structs of the C ABI that begin with struct_size and may grow at their end.
#pragma once

#include <cstring>

#include "problem/refusal.h"

namespace attn {

// Far more than any release will need: a larger struct_size was never set. attn/attn.h says so.
constexpr size_t kAbsurdStructBytes = 4096;

// The size of a struct in the first release that had it; one that has grown since says its own.
template <class Struct>
constexpr size_t kFirstReleaseBytes = sizeof(Struct);

// Returns what a caller built against any release passed: its fields over `defaults`, which keep
// their values where the caller's struct ends earlier. Refuses NULL, and a field of a later release
// that is set, since ignoring it would answer another question than was asked.
template <class Struct>
Struct read_growable(const char* name, const Struct* given, const Struct& defaults) {
  if (!given) refuse_argument("expected %s to be a struct, got NULL; pass one", name);
  size_t bytes;
  std::memcpy(&bytes, given, sizeof(bytes));
  if (bytes < kFirstReleaseBytes<Struct> || bytes > kAbsurdStructBytes) {
    refuse_argument(
        "expected %s's struct_size to be sizeof the struct (%zu in this release), got %zu; "
        "initialise the struct with its _INIT macro",
        name, sizeof(Struct), bytes);
  }
  const char* const all = reinterpret_cast<const char*>(given);
  for (size_t at = sizeof(Struct); at < bytes; ++at) {
    if (all[at] == 0) continue;
    refuse_unsupported(
        "expected %s's fields from byte %zu on, which this release does not know, to be 0, got one "
        "set at byte %zu; update the library, which is older than its header",
        name, sizeof(Struct), at);
  }
  Struct result = defaults;
  std::memcpy(&result, given, bytes < sizeof(Struct) ? bytes : sizeof(Struct));
  return result;
}

}  // namespace attn
