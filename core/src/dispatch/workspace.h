// The caller's workspace, at the alignment that kernels want.
#pragma once

#include <cstddef>
#include <cstdint>

#include "problem/refusal.h"
#include "problem/resources.h"

namespace attn {

// Kernels get their workspace at a multiple of this; callers may pass any address.
constexpr size_t kWorkspaceAlignment = 64;

inline size_t with_room_to_align(size_t bytes) {
  return bytes == 0 ? 0 : bytes + kWorkspaceAlignment - 1;
}

// Returns where the kernels' workspace begins, having checked that `needed` bytes are there.
inline void* aligned_workspace(const Resources& resources, size_t needed) {
  if (needed == 0) return nullptr;
  if (!resources.workspace) {
    refuse_argument("expected a workspace of %zu bytes, got NULL; ask the workspace query", needed);
  }
  if (resources.workspace_bytes < needed) {
    refuse_argument(
        "expected workspace_bytes >= %zu, got %zu; ask the workspace query with the "
        "same arguments",
        needed, resources.workspace_bytes);
  }
  const uintptr_t address = reinterpret_cast<uintptr_t>(resources.workspace);
  return reinterpret_cast<void*>((address + kWorkspaceAlignment - 1) / kWorkspaceAlignment *
                                 kWorkspaceAlignment);
}

}  // namespace attn
