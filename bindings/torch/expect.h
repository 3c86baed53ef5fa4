// How operators raise: as STD_TORCH_CHECK does, but without telling users this library's files.
#pragma once

#include <sstream>
#include <stdexcept>

namespace attn_torch {

// Throws what torch turns into a RuntimeError, with the parts as its message, unless `holds`.
template <class... Parts>
void expect(bool holds, const Parts&... parts) {
  if (holds) [[likely]]
    return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace attn_torch
