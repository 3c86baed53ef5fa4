// One emulated multiprocessor: runs the threads of a block as fibers, in an order that changes, and
// stops with a message where a real one would be undefined.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

namespace attn::cuda::emulation {

using Place = std::source_location;

constexpr int kLanes = 32;

struct Index {
  int x = 0, y = 0, z = 0;
};

// Runs `kernel(context)` as every thread of every block of `grid`. Each launch takes another order
// of blocks and threads; ATTN_EMULATION_SEED chooses the first.
void run_grid(Index grid, int threads, size_t shared_bytes, void (*kernel)(const void* context),
              const void* context);

// Of the running thread.
int thread_index();
Index block_index();
char* shared_memory();

// Waits for all threads of the block.
void join_block(Place place);

// Waits for all lanes of the warp, which must name the same operation at the same place. Then
// `perform` is called once with what each brought, in the order of lanes.
using Perform = void (*)(void* const (&operands)[kLanes]);
void join_warp(const char* operation, void* operands, Perform perform, Place place);

// Reports unless `bytes` at `address` lie in the block's shared memory, at a multiple of
// `alignment`.
void require_shared(const char* operation, const void* address, size_t bytes, size_t alignment,
                    Place place);

// A copy into shared memory that lands when the running thread waits for it.
void begin_copy(void* shared, const void* global, size_t bytes, bool present, Place place);
void commit_copies();
void wait_for_copies(int groups_under_way);

// Prints what is wrong, and in which block and thread, and stops the process.
[[noreturn]] void fail(const char* format, ...);

}  // namespace attn::cuda::emulation
