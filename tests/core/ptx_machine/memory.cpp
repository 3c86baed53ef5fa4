// Loads, stores, copies and atomic additions.
//
// Addresses that are not of shared memory are the host's.
#include <cstring>
#include <sstream>

#include "block.h"
#include "fail.h"
#include "operations.h"
#include "wavefronts.h"

namespace attn::ptx {
namespace {

uint64_t address_of(Warp& warp, int base, int offset, int lane) {
  return warp.values(base)[lane] + warp.values(offset)[lane];
}

// Of a request for so many bytes of each lane.
Addresses addresses_of(Warp& warp, Space space, int base, int offset, Lanes lanes, size_t bytes) {
  Addresses addresses{};
  for_each(lanes, [&](int lane) { addresses[lane] = address_of(warp, base, offset, lane); });
  if (space == Space::kShared) {
    count_wavefronts(warp.block().program(), addresses, lanes, bytes);
  }
  return addresses;
}

uint64_t widened(const Operation& operation, const char* bytes) {
  uint64_t value = 0;
  std::memcpy(&value, bytes, operation.element_bytes);
  if (!operation.is_signed) return value;
  const int unused = 64 - 8 * operation.element_bytes;
  return static_cast<uint64_t>(static_cast<int64_t>(value << unused) >> unused);
}

void read(Warp& warp, const Operation& operation, uint64_t address, size_t bytes, int lane,
          char* target) {
  if (operation.space == Space::kShared) {
    warp.block().shared().read(address, bytes, warp.moment(lane), target);
  } else if (operation.order == Order::kAcquire) {
    const uint32_t value = warp.block().global().acquire(address, warp.told());
    std::memcpy(target, &value, sizeof(value));
  } else if (warp.is_private(address)) {
    std::memcpy(target, reinterpret_cast<const char*>(address), bytes);
  } else {
    warp.block().global().read(address, bytes, warp.moment(lane), target);
  }
}

void load(Warp& warp, const Instruction& instruction, Lanes lanes) {
  const Operation& operation = instruction.operation;
  const int* address = &instruction.operands[operation.elements];
  const size_t bytes = operation.elements * operation.element_bytes;
  const Addresses from = addresses_of(warp, operation.space, address[0], address[1], lanes, bytes);
  for_each(lanes, [&](int lane) {
    char loaded[16];
    read(warp, operation, from[lane], bytes, lane, loaded);
    for (int i = 0; i < operation.elements; ++i) {
      warp.values(instruction.operands[i])[lane] =
          widened(operation, loaded + i * operation.element_bytes);
    }
  });
}

void write(Warp& warp, const Operation& operation, uint64_t address, size_t bytes, int lane,
           const char* source) {
  if (operation.space == Space::kShared) {
    warp.block().shared().write(address, bytes, warp.moment(lane), source);
  } else if (operation.order == Order::kRelease) {
    uint32_t value;
    std::memcpy(&value, source, sizeof(value));
    warp.block().global().release(address, value, warp.moment(lane));
  } else if (warp.is_private(address)) {
    std::memcpy(reinterpret_cast<char*>(address), source, bytes);
  } else {
    warp.block().global().write(address, bytes, warp.moment(lane), source);
  }
}

void store(Warp& warp, const Instruction& instruction, Lanes lanes) {
  const Operation& operation = instruction.operation;
  const int* operands = instruction.operands.data();
  const size_t bytes = operation.elements * operation.element_bytes;
  const Addresses to = addresses_of(warp, operation.space, operands[0], operands[1], lanes, bytes);
  for_each(lanes, [&](int lane) {
    char stored[16];
    for (int i = 0; i < operation.elements; ++i) {
      std::memcpy(stored + i * operation.element_bytes, &warp.values(operands[2 + i])[lane],
                  operation.element_bytes);
    }
    write(warp, operation, to[lane], bytes, lane, stored);
  });
}

void add_atomically(Warp& warp, const Instruction& instruction, Lanes lanes) {
  const int* operands = instruction.operands.data();
  for_each(lanes, [&](int lane) {
    warp.values(operands[0])[lane] =
        warp.block().global().add(address_of(warp, operands[1], operands[2], lane),
                                  as<uint32_t>(warp.values(operands[3])[lane]));
  });
}

// cp.async [shared], [global], bytes, bytes that are read; the rest becomes 0.
void begin_copy(Warp& warp, const Instruction& instruction, Lanes lanes) {
  const int* operands = instruction.operands.data();
  const auto bytes = static_cast<uint8_t>(warp.values(operands[4])[0]);  // a constant
  const Addresses to = addresses_of(warp, Space::kShared, operands[0], operands[1], lanes, bytes);
  for_each(lanes, [&](int lane) {
    const Copy copy{.shared = to[lane],
                    .global = address_of(warp, operands[2], operands[3], lane),
                    .bytes = bytes,
                    .present_bytes = static_cast<uint8_t>(warp.values(operands[5])[lane])};
    if (copy.present_bytes > 0 && copy.global % bytes != 0) {
      fail("a copy of %d bytes from %#llx, which is no multiple", int{bytes},
           static_cast<unsigned long long>(copy.global));
    }
    warp.block().shared().begin_copy(copy.shared, bytes, warp.moment(lane));
    warp.copies(lane).open.push_back(copy);
  });
}

void commit_copies(Warp& warp, const Instruction&, Lanes lanes) {
  for_each(lanes, [&](int lane) {
    Copies& copies = warp.copies(lane);
    copies.groups.push_back(std::move(copies.open));
    copies.open.clear();
  });
}

void land(Warp& warp, const std::vector<Copy>& group, int lane) {
  for (const Copy& copy : group) {
    char bytes[16] = {};
    if (copy.present_bytes > 0) {
      warp.block().global().read(copy.global, copy.present_bytes, warp.moment(lane), bytes);
    }
    warp.block().shared().land_copy(copy.shared, copy.bytes, warp.moment(lane), bytes);
  }
}

void wait_for_groups(Warp& warp, const Instruction& instruction, Lanes lanes) {
  for_each(lanes, [&](int lane) {
    auto& groups = warp.copies(lane).groups;
    const auto under_way = static_cast<size_t>(warp.values(instruction.operands[0])[lane]);
    while (groups.size() > under_way) {
      land(warp, groups.front(), lane);
      groups.erase(groups.begin());
    }
  });
}

void wait_for_all(Warp& warp, const Instruction&, Lanes lanes) {
  for_each(lanes, [&](int lane) {
    Copies& copies = warp.copies(lane);
    for (const std::vector<Copy>& group : copies.groups) land(warp, group, lane);
    land(warp, copies.open, lane);
    copies = {};
  });
}

// As in ld.global.cg.v4.f32: what caches are told is nothing to this machine.
Operation access(const std::string& opcode) {
  Operation operation{.execute = opcode.starts_with("ld") ? &load : &store};
  std::istringstream parts(opcode);
  for (std::string part; std::getline(parts, part, '.');) {
    if (part == "shared") operation.space = Space::kShared;
    if (part == "acquire") operation.order = Order::kAcquire;
    if (part == "release") operation.order = Order::kRelease;
    if (part == "v2" || part == "v4") operation.elements = static_cast<uint8_t>(part[1] - '0');
    const size_t digits = part.find_first_of("0123456789");
    if (digits == 1 && std::strchr("usfb", part[0])) {
      operation.element_bytes = static_cast<uint8_t>(std::stoi(part.substr(1)) / 8);
      operation.is_signed = part[0] == 's';
    }
  }
  return operation;
}

}  // namespace

Operation memory_operation(const std::string& opcode) {
  if (opcode.starts_with("ld.") || opcode.starts_with("st.")) return access(opcode);
  if (opcode == "atom.global.add.u32") return {.execute = &add_atomically};
  if (opcode == "cp.async.commit_group") return {.execute = &commit_copies};
  if (opcode == "cp.async.wait_group") return {.execute = &wait_for_groups};
  if (opcode == "cp.async.wait_all") return {.execute = &wait_for_all};
  if (opcode.starts_with("cp.async.c")) return {.execute = &begin_copy};
  return {};
}

}  // namespace attn::ptx
