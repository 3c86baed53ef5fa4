// Kernels in PTX, read into instructions whose operands are all registers.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace attn::ptx {

struct Instruction;
class Warp;

using Lanes = uint32_t;  // a bit for each lane of a warp

// Carries an instruction out for some lanes of a warp, which are all that are there.
using Execute = void (*)(Warp& warp, const Instruction& instruction, Lanes lanes);

// What the machine does beside calling `execute`.
enum class Flow : uint8_t { kNext, kBranch, kEnd, kBlockBarrier, kWarpBarrier, kSleep };

enum class Space : uint8_t { kGeneric, kShared };
enum class Order : uint8_t { kWeak, kAcquire, kRelease };

struct Operation {
  Execute execute = nullptr;  // null for what `flow` says all about
  Flow flow = Flow::kNext;
  bool joins_lanes = false;  // all of the warp's lanes have to be there

  // Of loads and stores.
  Space space = Space::kGeneric;
  Order order = Order::kWeak;
  uint8_t elements = 1, element_bytes = 0;
  bool is_signed = false;
};

struct Instruction {
  Operation operation;
  std::vector<int> operands;  // registers: those of vectors one by one, an address and its offset
  int guard = -1;             // a predicate without which nothing happens
  bool guard_is_negated = false;
  int target = -1;  // of a branch
  std::string text;
};

// Constants, special registers and the addresses of variables are registers too, which are set
// before a block begins.
struct Program {
  std::string name;
  std::vector<Instruction> instructions;
  int num_registers = 0;
  std::vector<std::pair<int, uint64_t>> constants;
  std::vector<std::pair<std::string, int>> variables;  // "%tid.x", "__local_depot0", …
  size_t parameter_bytes = 0;
  size_t local_bytes = 0;  // of each thread
  int most_threads = 1024;
};

// All kernels of a PTX text. Ends the process where it meets what it does not know.
std::vector<Program> read_programs(std::string_view text);

}  // namespace attn::ptx
