// Memory that ends where an unreadable page begins: a read past the end stops the test, under every
// compiler, emulator and instruction set.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <new>
#include <utility>

class GuardedBytes {
 public:
  GuardedBytes() = default;
  GuardedBytes(const GuardedBytes& other) : GuardedBytes(other.size_) {
    std::copy(other.begin(), other.end(), begin());
  }
  GuardedBytes(GuardedBytes&& other) noexcept { swap(other); }
  GuardedBytes& operator=(GuardedBytes other) noexcept {
    swap(other);
    return *this;
  }
  ~GuardedBytes() {
    if (data_) munmap(data_ + size_ - readable_bytes(size_), readable_bytes(size_) + page_bytes());
  }

  // As many bytes anew, all of this value.
  void assign(size_t size, char byte) {
    if (size != size_) *this = GuardedBytes(size);
    std::fill(begin(), end(), byte);
  }

  size_t size() const { return size_; }
  char* data() { return data_; }
  const char* data() const { return data_; }
  char* begin() { return data_; }
  char* end() { return data_ + size_; }
  const char* begin() const { return data_; }
  const char* end() const { return data_ + size_; }
  char operator[](size_t place) const { return data_[place]; }

  friend bool operator==(const GuardedBytes& a, const GuardedBytes& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  }

 private:
  explicit GuardedBytes(size_t size) : size_(size) {
    if (size == 0) return;
    void* pages = mmap(nullptr, readable_bytes(size) + page_bytes(), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    char* guard = static_cast<char*>(pages) + readable_bytes(size);
    if (mprotect(guard, page_bytes(), PROT_NONE) != 0) throw std::bad_alloc();
    data_ = guard - size;
  }

  void swap(GuardedBytes& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

  static size_t page_bytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }
  static size_t readable_bytes(size_t bytes) {
    return (bytes + page_bytes() - 1) / page_bytes() * page_bytes();
  }

  char* data_ = nullptr;  // null where there are no bytes
  size_t size_ = 0;
};
