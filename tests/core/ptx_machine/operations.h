// What each opcode does.
#pragma once

#include <string>
#include <unordered_map>

#include "program.h"

namespace attn::ptx {

using Table = std::unordered_map<std::string, Operation>;

// Ends the process for an opcode it does not know.
Operation operation_of(const std::string& opcode);

// Each adds the operations of its kind.
void add_arithmetic(Table& table);
void add_conversions(Table& table);
void add_collectives(Table& table);

// A load, a store, a copy or an atomic operation, or none of them: then `execute` is null.
Operation memory_operation(const std::string& opcode);

}  // namespace attn::ptx
