// Replaces operator new, so that a test may let it fail. For the one source of a program.
#pragma once

#include <atomic>
#include <cstdlib>
#include <new>

inline std::atomic<bool> memory_is_refused{false};

// While one lives, operator new throws, on every thread.
struct NoMemory {
  NoMemory() { memory_is_refused = true; }
  ~NoMemory() { memory_is_refused = false; }
  NoMemory(const NoMemory&) = delete;
  NoMemory& operator=(const NoMemory&) = delete;
};

void* operator new(std::size_t bytes) {
  void* memory = memory_is_refused ? nullptr : std::malloc(bytes > 0 ? bytes : 1);
  if (!memory) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
