// AMX: the tile registers of a thread, and the instructions that the kernels have for them.
#pragma once

#include <cstdint>

namespace emulation {

void tile_loadconfig(const void* shapes);
void tile_loadd(int tile, const void* from, int64_t stride);
void tile_stored(int tile, void* to, int64_t stride);
void tile_zero(int tile);
void tile_dpbf16ps(int sums, int a, int b);

}  // namespace emulation
