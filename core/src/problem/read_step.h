// Validates the arguments of one step and translates them into a StepProblem.
#pragma once

#include "attn/step.h"
#include "problem/resources.h"
#include "problem/step_problem.h"
#include "problem/tensor_reader.h"

namespace attn {

struct StepCall {
  StepProblem problem;
  Resources resources;
};

// Throws Refusal; `data` says whether the arrays themselves matter.
StepCall read_step(const attn_step_args* args, TensorReader::Data data);

}  // namespace attn
