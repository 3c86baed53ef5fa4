// The inner loops that reach the limits of one core, in the widest instructions it has.
#pragma once

#include <cstddef>
#include <cstdint>

namespace attn::python {

struct CeilingLoops {
  // Multiply and add `rounds` times; return the floating-point operations done.
  int64_t (*multiply_float32)(int64_t rounds);
  int64_t (*multiply_bfloat16)(int64_t rounds);  // NULL if the CPU has no such dot product
  // Reads `bytes`, a multiple of 512, from a 64-byte aligned `data`, and returns what depends on
  // all of them.
  int64_t (*read)(const void* data, size_t bytes);
};

// Those of the machine this runs on.
CeilingLoops ceiling_loops();

}  // namespace attn::python
