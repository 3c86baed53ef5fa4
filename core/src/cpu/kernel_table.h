// What every ISA's translation unit offers; dispatch/ picks one instruction set per process.
#pragma once

#include <cstddef>

#include "parallel/task_runner.h"
#include "problem/linear_problem.h"
#include "problem/merge_problem.h"
#include "problem/problem.h"

namespace attn::cpu {

// The kernels that multiply in one way. A workspace starts at a multiple of 64 bytes.
struct KernelTable {
  size_t (*forward_workspace)(const ForwardProblem& problem, int workers);  // bytes
  void (*forward)(const ForwardProblem& problem, void* workspace, const TaskRunner& runner);
  size_t (*backward_workspace)(const BackwardProblem& problem, int workers);  // bytes
  void (*backward)(const BackwardProblem& problem, void* workspace, const TaskRunner& runner);
  void (*merge_forward)(const MergeForwardProblem& problem, const TaskRunner& runner);
  void (*merge_backward)(const MergeBackwardProblem& problem, const TaskRunner& runner);
  size_t (*linear_workspace)(const LinearProblem& problem, int workers);  // bytes
  void (*linear)(const LinearProblem& problem, void* workspace, const TaskRunner& runner);
};

// A table for each dtype; several may share one.
struct InstructionSet {
  const char* name;  // "scalar", "avx2", "avx512", "avx512_bf16", "amx_bf16", "neon"
  const KernelTable* float32;
  const KernelTable* float16;
  const KernelTable* bfloat16;
  const KernelTable* float64;

  const KernelTable& kernels_for(DType dtype) const {
    switch (dtype) {
      case DType::kFloat64: return *float64;
      case DType::kBFloat16: return *bfloat16;
      case DType::kFloat16: return *float16;
      default: return *float32;
    }
  }
};

// One per file in isa/; a build has those its architecture allows.
extern const InstructionSet kScalar;
extern const InstructionSet kAvx2;
extern const InstructionSet kAvx512;
extern const InstructionSet kAvx512Bf16;
extern const InstructionSet kAmxBf16;
extern const InstructionSet kNeon;

// What avx512_bf16 takes from avx512; amx_bf16 that of float64.
extern const KernelTable kAvx512SingleKernels;
extern const KernelTable kAvx512DoubleKernels;

}  // namespace attn::cpu
