// How long requests to shared memory take: in wavefronts, of which one serves each of the 32 banks
// once. With ATTN_COUNT_WAVEFRONTS set, what each kernel made of them is printed at the end.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "access.h"
#include "program.h"

namespace attn::ptx {

using Addresses = std::array<uint64_t, kLanes>;

// Counts a warp's request for so many bytes at each of these lanes' addresses.
void count_wavefronts(const Program& program, const Addresses& addresses, Lanes lanes,
                      size_t bytes);

}  // namespace attn::ptx
