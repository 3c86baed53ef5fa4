// The kernels' side of the running block, and the order in which blocks run.
#include "machine.h"

#include <signal.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>

#include "block.h"
#include "emulated_device.h"

namespace attn::cuda::emulation {
namespace {

constexpr char kPoison = '\xFF';

// Names a forbidden access by the block and thread that made it.
void report_fault(int signal_number, siginfo_t* information, void*) {
  const Block* block = running_block;
  signal(signal_number, SIG_DFL);
  if (!block) return;
  const char* address = static_cast<const char*>(information->si_addr);
  if (block->is_below_a_stack(address)) fail("a thread's stack overflowed");
  const GuardedSharedMemory& shared = running_block->shared();
  if (shared.is_beside(address)) {
    fail("access at byte %td of %zu bytes of shared memory", address - shared.begin(),
         shared.bytes());
  }
  fail("access to memory that is not there, at %p", static_cast<const void*>(address));
}

void catch_faults() {
  static char stack[64 * 1024];
  const stack_t alternative{.ss_sp = stack, .ss_flags = 0, .ss_size = sizeof(stack)};
  sigaltstack(&alternative, nullptr);
  struct sigaction action{};
  action.sa_sigaction = &report_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}

// Says whether a copy's target is awaited from here on, and returns whether any of it was.
bool set_awaited(const Copy& copy, bool is_awaited) {
  const size_t first = (static_cast<char*>(copy.target) - shared_memory()) / kCopyWord;
  std::vector<bool>& words = running_block->awaited_words();
  bool was_awaited = false;
  for (size_t word = first; word < first + copy.size / kCopyWord; ++word) {
    was_awaited |= words[word];
    words[word] = is_awaited;
  }
  return was_awaited;
}

void land(const std::vector<Copy>& group) {
  for (const Copy& copy : group) {
    std::memcpy(copy.target, copy.bytes, copy.size);
    set_awaited(copy, false);
  }
}

}  // namespace

void run_grid(Index grid, int threads, size_t shared_bytes, void (*kernel)(const void*),
              const void* context) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  catch_faults();
  std::mt19937_64 order(gpu::next_seed());
  std::vector<int64_t> blocks(static_cast<int64_t>(grid.x) * grid.y * grid.z);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<int64_t>(i);
  std::shuffle(blocks.begin(), blocks.end(), order);
  Block block(threads, shared_bytes);
  for (const int64_t b : blocks) {
    const Index index{.x = static_cast<int>(b % grid.x),
                      .y = static_cast<int>(b / grid.x % grid.y),
                      .z = static_cast<int>(b / grid.x / grid.y)};
    block.run(index, order(), kernel, context);
  }
}

int thread_index() { return running_block->running(); }
Index block_index() { return running_block->index(); }
char* shared_memory() { return running_block->shared().begin(); }

void join_block(Place place) { running_block->join_barrier(place); }

void join_warp(const char* operation, void* operands, Perform perform, Place place) {
  running_block->join_warp(operation, operands, perform, place);
}

void require_shared(const char* operation, const void* address, size_t bytes, size_t alignment,
                    Place place) {
  const GuardedSharedMemory& shared = running_block->shared();
  const char* begin = static_cast<const char*>(address);
  if (begin < shared.begin() || begin + bytes > shared.begin() + shared.bytes()) {
    fail("%s at %s:%u: bytes %td to %td of %zu bytes of shared memory", operation,
         place.file_name(), place.line(), begin - shared.begin(),
         begin - shared.begin() + static_cast<ptrdiff_t>(bytes), shared.bytes());
  }
  if (reinterpret_cast<uintptr_t>(address) % alignment != 0) {
    fail("%s at %s:%u: shared memory at byte %td, not a multiple of %zu", operation,
         place.file_name(), place.line(), begin - shared.begin(), alignment);
  }
}

void begin_copy(void* shared, const void* global, size_t bytes, bool present, Place place) {
  require_shared("copy_async", shared, bytes, bytes, place);
  if (present && reinterpret_cast<uintptr_t>(global) % bytes != 0) {
    fail("copy_async at %s:%u: global memory at %p, not a multiple of %zu", place.file_name(),
         place.line(), global, bytes);
  }
  Copy copy{.bytes = {}, .size = bytes, .target = shared};
  if (set_awaited(copy, true)) {
    fail("copy_async at %s:%u: to where another copy is under way", place.file_name(),
         place.line());
  }
  if (present) std::memcpy(copy.bytes, global, bytes);
  std::memset(shared, kPoison, bytes);
  running_block->thread().open_copies.push_back(copy);
}

void commit_copies() {
  Thread& thread = running_block->thread();
  thread.copies.push_back(std::move(thread.open_copies));
  thread.open_copies.clear();
}

void wait_for_copies(int groups_under_way) {
  Thread& thread = running_block->thread();
  const int landing = static_cast<int>(thread.copies.size()) - groups_under_way;
  for (int i = 0; i < landing; ++i) land(thread.copies[i]);
  if (landing > 0) thread.copies.erase(thread.copies.begin(), thread.copies.begin() + landing);
  // wait_all, which a wait for every group compiles to, covers copies in no group too.
  if (groups_under_way > 0) return;
  land(thread.open_copies);
  thread.open_copies.clear();
}

void fail(const char* format, ...) {
  char text[1024];
  size_t used = 0;
  if (const Block* block = running_block) {
    const Index index = block->index();
    used = std::snprintf(text, sizeof(text), "block (%d, %d, %d), thread %d: ", index.x, index.y,
                         index.z, block->running());
  }
  std::va_list values;
  va_start(values, format);
  std::vsnprintf(text + used, sizeof(text) - used, format, values);
  va_end(values);
  std::fflush(stdout);
  std::fprintf(stderr, "emulated GPU: %s\n", text);
  std::_Exit(1);
}

}  // namespace attn::cuda::emulation
