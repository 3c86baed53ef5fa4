// Who may touch which byte of shared memory.
#include "shared_memory.h"

#include <algorithm>
#include <cstring>

#include "fail.h"

namespace attn::ptx {
namespace {

constexpr char kPoison = '\xFF';  // NaN in every floating-point format, -1 as an integer

[[noreturn]] void report(const char* what, size_t place, const Access& other, const Moment& now) {
  fail(
      "thread %d %s byte %zu of shared memory, which thread %d (-2: several) used, and no barrier "
      "is between",
      now.thread, what, place, other.thread());
}

}  // namespace

SharedMemory::SharedMemory(size_t bytes) : memory_(bytes, kPoison), bytes_(bytes) {}

size_t SharedMemory::place_of(uint64_t address, size_t bytes, const char* what) const {
  const uint64_t place = address - kBegin;
  if (place > bytes_.size() || place + bytes > bytes_.size()) {
    fail("%s of bytes %lld to %lld of %zu bytes of shared memory", what,
         static_cast<long long>(place), static_cast<long long>(place + bytes), bytes_.size());
  }
  if (place % bytes != 0) {
    fail("%s of %zu bytes of shared memory at byte %zu, which is no multiple", what, bytes,
         static_cast<size_t>(place));
  }
  return place;
}

void SharedMemory::read(uint64_t address, size_t bytes, const Moment& now, void* target) {
  const size_t begin = place_of(address, bytes, "a read");
  for (size_t place = begin; place < begin + bytes; ++place) {
    Byte& byte = bytes_[place];
    if (byte.is_awaited) fail("a read of byte %zu of shared memory, which is being copied", place);
    if (!byte.is_written) fail("a read of byte %zu of shared memory, never written", place);
    if (byte.written.races_with(now)) report("reads", place, byte.written, now);
    byte.read.note(now);
  }
  std::memcpy(target, &memory_[begin], bytes);
}

void SharedMemory::note_write(size_t begin, size_t bytes, const Moment& now, const char* source) {
  for (size_t place = begin; place < begin + bytes; ++place) {
    Byte& byte = bytes_[place];
    if (byte.is_awaited) fail("a write of byte %zu of shared memory, which is being copied", place);
    const bool changes = !source || memory_[place] != source[place - begin];
    if (changes && byte.written.races_with(now)) report("overwrites", place, byte.written, now);
    if (byte.read.races_with(now)) report("overwrites", place, byte.read, now);
    byte.written.note(now);
    byte.read.forget();
    byte.is_written = true;
  }
}

void SharedMemory::write(uint64_t address, size_t bytes, const Moment& now, const void* source) {
  const size_t begin = place_of(address, bytes, "a write");
  note_write(begin, bytes, now, static_cast<const char*>(source));
  std::memcpy(&memory_[begin], source, bytes);
}

void SharedMemory::begin_copy(uint64_t address, size_t bytes, const Moment& now) {
  const size_t begin = place_of(address, bytes, "a copy");
  note_write(begin, bytes, now, nullptr);
  std::fill_n(&memory_[begin], bytes, kPoison);
  for (size_t place = begin; place < begin + bytes; ++place) bytes_[place].is_awaited = true;
}

void SharedMemory::land_copy(uint64_t address, size_t bytes, const Moment& now,
                             const void* source) {
  const size_t begin = address - kBegin;
  for (size_t place = begin; place < begin + bytes; ++place) {
    bytes_[place].is_awaited = false;
    bytes_[place].written.note(now);
  }
  std::memcpy(&memory_[begin], source, bytes);
}

}  // namespace attn::ptx
