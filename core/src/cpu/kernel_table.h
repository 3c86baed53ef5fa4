// What every ISA's translation unit offers; dispatch/ picks one table per process.
#pragma once

#include <cstddef>

#include "parallel/task_runner.h"
#include "problem/linear_problem.h"
#include "problem/merge_problem.h"
#include "problem/problem.h"

namespace attn::cpu {

// A workspace starts at a multiple of 64 bytes.
struct KernelTable {
  const char* isa;  // "scalar", "avx2", "avx512", "avx512_bf16", "neon"
  size_t (*forward_workspace)(const ForwardProblem& problem, int workers);  // bytes
  void (*forward)(const ForwardProblem& problem, void* workspace, const TaskRunner& runner);
  size_t (*backward_workspace)(const BackwardProblem& problem, int workers);  // bytes
  void (*backward)(const BackwardProblem& problem, void* workspace, const TaskRunner& runner);
  void (*merge_forward)(const MergeForwardProblem& problem, const TaskRunner& runner);
  void (*merge_backward)(const MergeBackwardProblem& problem, const TaskRunner& runner);
  size_t (*linear_workspace)(const LinearProblem& problem, int workers);  // bytes
  void (*linear)(const LinearProblem& problem, void* workspace, const TaskRunner& runner);
};

// One per file in isa/; a build has those its architecture allows.
extern const KernelTable kScalarKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kAvx512Bf16Kernels;
extern const KernelTable kNeonKernels;

}  // namespace attn::cpu
