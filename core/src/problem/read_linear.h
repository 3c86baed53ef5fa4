// Validates the arguments of one linear layer and translates them into a LinearProblem.
#pragma once

#include "attn/linear.h"
#include "problem/linear_problem.h"
#include "problem/resources.h"
#include "problem/tensor_reader.h"

namespace attn {

struct LinearCall {
  LinearProblem problem;
  Resources resources;
};

// Throws Refusal; `data` says whether the arrays themselves matter.
LinearCall read_linear(const attn_linear_args* args, TensorReader::Data data);

}  // namespace attn
