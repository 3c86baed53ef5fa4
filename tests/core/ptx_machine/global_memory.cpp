// Who may touch which byte of global memory.
#include "global_memory.h"

#include <algorithm>
#include <cstring>

#include "fail.h"

namespace attn::ptx {
namespace {

char* pointer_to(uint64_t address, size_t bytes) {
  if (address % bytes != 0) {
    fail("an access of %zu bytes at %#llx, which is no multiple", bytes,
         static_cast<unsigned long long>(address));
  }
  return reinterpret_cast<char*>(address);
}

[[noreturn]] void report(const char* what, uint64_t address, const Access& other,
                         const Moment& now) {
  fail(
      "thread %d %s the byte at %#llx, which thread %d of block %d (-2: several) used, and nothing "
      "is between",
      now.thread, what, static_cast<unsigned long long>(address), other.thread(), other.block());
}

}  // namespace

void learn(KnownBarriers& known, const KnownBarriers& other) {
  known.resize(std::max(known.size(), other.size()));
  for (size_t i = 0; i < other.size(); ++i) known[i] = std::max(known[i], other[i]);
}

GlobalMemory::Byte& GlobalMemory::byte_at(uint64_t address) {
  const uint64_t number = address / kPageBytes;
  if (!latest_ || number != latest_number_) {
    std::unique_ptr<Page>& page = pages_[number];
    if (!page) page = std::make_unique<Page>();
    latest_ = page.get();
    latest_number_ = number;
  }
  return (*latest_)[address % kPageBytes];
}

void GlobalMemory::read(uint64_t address, size_t bytes, const Moment& now, void* target) {
  std::memcpy(target, pointer_to(address, bytes), bytes);
  for (uint64_t at = address; at < address + bytes; ++at) {
    Byte& byte = byte_at(at);
    if (byte.written.races_with(now)) report("reads", at, byte.written, now);
    byte.read.note(now);
  }
}

void GlobalMemory::write(uint64_t address, size_t bytes, const Moment& now, const void* source) {
  char* target = pointer_to(address, bytes);
  const char* from = static_cast<const char*>(source);
  for (uint64_t at = address; at < address + bytes; ++at) {
    Byte& byte = byte_at(at);
    const bool changes = target[at - address] != from[at - address];
    if (changes && byte.written.races_with(now)) report("overwrites", at, byte.written, now);
    if (byte.read.races_with(now)) report("overwrites", at, byte.read, now);
    byte.written.note(now);
    byte.read.forget();
  }
  std::memcpy(target, source, bytes);
}

uint32_t GlobalMemory::acquire(uint64_t address, KnownBarriers& known) {
  uint32_t value;
  std::memcpy(&value, pointer_to(address, sizeof(value)), sizeof(value));
  if (const auto told = released_.find(address); told != released_.end()) {
    learn(known, told->second);
  }
  return value;
}

void GlobalMemory::release(uint64_t address, uint32_t value, const Moment& now) {
  KnownBarriers& told = released_[address];
  told.assign(blocks_, 0);
  if (now.known_barriers) learn(told, *now.known_barriers);
  told[now.block] = now.block_barriers;
  std::memcpy(pointer_to(address, sizeof(value)), &value, sizeof(value));
}

uint32_t GlobalMemory::add(uint64_t address, uint32_t value) {
  char* at = pointer_to(address, sizeof(value));
  uint32_t before;
  std::memcpy(&before, at, sizeof(before));
  const uint32_t after = before + value;
  std::memcpy(at, &after, sizeof(after));
  return before;
}

}  // namespace attn::ptx
