// Memory that ends where an unreadable page begins: a read past the end stops the test, under every
// compiler, emulator and instruction set.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <new>
#include <vector>

template <class T>
struct GuardedAllocator {
  using value_type = T;

  GuardedAllocator() = default;
  template <class U>
  GuardedAllocator(const GuardedAllocator<U>&) {}

  T* allocate(size_t count) {
    const size_t bytes = count * sizeof(T);
    void* pages = mmap(nullptr, readable_bytes(bytes) + page_bytes(), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    char* guard = static_cast<char*>(pages) + readable_bytes(bytes);
    if (mprotect(guard, page_bytes(), PROT_NONE) != 0) throw std::bad_alloc();
    return reinterpret_cast<T*>(guard - bytes);
  }
  void deallocate(T* data, size_t count) {
    const size_t bytes = count * sizeof(T);
    char* guard = reinterpret_cast<char*>(data) + bytes;
    munmap(guard - readable_bytes(bytes), readable_bytes(bytes) + page_bytes());
  }

  friend bool operator==(const GuardedAllocator&, const GuardedAllocator&) { return true; }

 private:
  static size_t page_bytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }
  static size_t readable_bytes(size_t bytes) {
    return (bytes + page_bytes() - 1) / page_bytes() * page_bytes();
  }
};

using GuardedBytes = std::vector<char, GuardedAllocator<char>>;
