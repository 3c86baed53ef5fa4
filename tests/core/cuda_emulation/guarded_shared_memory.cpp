// Shared memory that ends at a guard page; the slack before the page holds a known pattern.
#include "guarded_shared_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <new>

namespace attn::cuda::emulation {
namespace {

constexpr size_t kAlignment = 128;
constexpr char kPoison = '\xFF';  // NaN in every floating-point format, -1 as an integer

constexpr size_t round_up(size_t bytes, size_t multiple) {
  return (bytes + multiple - 1) / multiple * multiple;
}

}  // namespace

GuardedSharedMemory::GuardedSharedMemory(size_t bytes)
    // Many pages: what lies tiles further on is as wrong as the next byte.
    : guard_bytes_(64 * static_cast<size_t>(sysconf(_SC_PAGESIZE))),
      reserved_(round_up(bytes, static_cast<size_t>(sysconf(_SC_PAGESIZE)))),
      bytes_(bytes),
      slack_(round_up(bytes, kAlignment) - bytes) {
  void* memory = mmap(nullptr, reserved_ + 2 * guard_bytes_, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  pages_ = static_cast<char*>(memory) + guard_bytes_;
  if (mprotect(pages_, reserved_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  begin_ = pages_ + reserved_ - slack_ - bytes_;
}

GuardedSharedMemory::~GuardedSharedMemory() {
  munmap(pages_ - guard_bytes_, reserved_ + 2 * guard_bytes_);
}

void GuardedSharedMemory::poison() { std::memset(pages_, kPoison, reserved_); }

bool GuardedSharedMemory::is_slack_untouched() const {
  for (const char* byte = pages_; byte < pages_ + reserved_; ++byte) {
    if (byte == begin_) byte += bytes_;
    if (byte < pages_ + reserved_ && *byte != kPoison) return false;
  }
  return true;
}

bool GuardedSharedMemory::is_beside(const void* address) const {
  const char* place = static_cast<const char*>(address);
  return place >= pages_ - guard_bytes_ && place < pages_ + reserved_ + guard_bytes_;
}

}  // namespace attn::cuda::emulation
