// A block's shared memory, which knows who wrote and read each byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "access.h"

namespace attn::ptx {

class SharedMemory {
 public:
  // Where it begins among a kernel's 32-bit addresses; not at 0, which is a mistake more often.
  static constexpr uint32_t kBegin = 1024;

  explicit SharedMemory(size_t bytes);

  // Each ends the process where the access is outside the memory, misaligned, or races with
  // another; so does reading what was never written.
  void read(uint64_t address, size_t bytes, const Moment& now, void* target);
  void write(uint64_t address, size_t bytes, const Moment& now, const void* source);
  // A copy that is under way until it lands: until then nobody may touch the bytes.
  void begin_copy(uint64_t address, size_t bytes, const Moment& now);
  void land_copy(uint64_t address, size_t bytes, const Moment& now, const void* source);

 private:
  struct Byte {
    Access written, read;
    bool is_written = false, is_awaited = false;
  };

  // Where the address's first byte lies.
  size_t place_of(uint64_t address, size_t bytes, const char* what) const;
  // Several may write the same at a time; a source that comes later is null.
  void note_write(size_t place, size_t bytes, const Moment& now, const char* source);

  std::vector<char> memory_;
  std::vector<Byte> bytes_;
};

}  // namespace attn::ptx
