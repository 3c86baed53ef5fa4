// All opcodes that the kernels use.
#include "operations.h"

#include "fail.h"

namespace attn::ptx {

Operation operation_of(const std::string& opcode) {
  static const Table table = [] {
    Table all{{"bra", {.flow = Flow::kBranch}},
              {"bra.uni", {.flow = Flow::kBranch}},
              {"ret", {.flow = Flow::kEnd}},
              {"bar.sync", {.flow = Flow::kBlockBarrier}},
              {"bar.warp.sync", {.flow = Flow::kWarpBarrier}},
              {"nanosleep.u32", {.flow = Flow::kSleep}}};
    add_arithmetic(all);
    add_conversions(all);
    add_collectives(all);
    return all;
  }();
  if (const auto entry = table.find(opcode); entry != table.end()) return entry->second;
  const Operation operation = memory_operation(opcode);
  if (!operation.execute) fail("PTX: no such opcode here: %s", opcode.c_str());
  return operation;
}

}  // namespace attn::ptx
