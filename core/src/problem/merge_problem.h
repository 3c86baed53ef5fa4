// One validated merge, in the terms the kernels think in. Plain data: no maths, no STL.
#pragma once

#include <cstdint>

#include "problem/problem.h"

namespace attn {

// Attention over some of the keys; in the backward with its gradients, where they are wanted.
struct MergeChunk {
  HeadRows out;
  RowScalars lse;
  HeadRows grad_out;
  RowScalars grad_lse;
};

// Kernels hold a number for each chunk of a row.
constexpr int64_t kMostMergeChunks = 1024;

struct MergeProblem {
  int64_t B = 0, M = 0, H = 0, Kv = 0;
  DType dtype = DType::kFloat32;  // of the chunks' outs; kFloat64: of everything
  const MergeChunk* chunks = nullptr;
  int64_t num_chunks = 0;
};

struct MergeForwardProblem : MergeProblem {
  HeadRows out;
  RowScalars lse;  // written if present
};

struct MergeBackwardProblem : MergeProblem {
  HeadRows grad_out;
  RowScalars grad_lse;           // optional
  bool wants_grad_lses = false;  // of any chunk
};

}  // namespace attn
