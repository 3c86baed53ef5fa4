// The rules of attn/linear.h, argument by argument.
#include "problem/read_linear.h"

#include "problem/growable_struct.h"
#include "problem/read_operands.h"
#include "problem/refusal.h"

namespace attn {
namespace {

TensorSpec rows_like_x(const char* name, Access access, const LinearProblem& problem, Axis first,
                       Axis second = {}) {
  return {.name = name,
          .access = access,
          .dtypes = only(problem.dtype),
          .axes = {first, second, {}, {}}};
}

void read_arrays(const attn_linear_args& args, TensorReader& reader, LinearProblem& problem) {
  const auto x = reader.rows({.name = "x",
                              .access = Access::kRead,
                              .dtypes = kFloating,
                              .axes = {free_axis("N"), free_axis("E"), {}, {}}},
                             2, args.x);
  problem.x = x.rows;
  problem.dtype = x.dtype;
  problem.N = args.x->shape[0];
  problem.E = args.x->shape[1];
  if (problem.E == 0) refuse_argument("expected x's width E >= 1, got 0; pass wider rows");
  const Axis width = axis("E", problem.E, "x");
  const TensorSpec weight = rows_like_x("weight", Access::kRead, problem, free_axis("F"), width);
  problem.weight = reader.rows(weight, 2, args.weight).rows;
  problem.F = args.weight->shape[0];
  const Axis features = axis("F", problem.F, "weight");
  if (args.bias) {
    const TensorSpec bias = rows_like_x("bias", Access::kRead, problem, features);
    problem.bias = reader.rows(bias, 1, args.bias).rows.data;
  }
  const Axis count = axis("N", problem.N, "x");
  const TensorSpec out = rows_like_x("out", Access::kWritten, problem, count, features);
  problem.out = reader.rows(out, 2, args.out).rows;
}

}  // namespace

LinearCall read_linear(const attn_linear_args* given, TensorReader::Data data) {
  const attn_linear_args args = read_growable<attn_linear_args>("args", given, ATTN_LINEAR_INIT);
  LinearCall call;
  TensorReader reader(data);
  read_arrays(args, reader, call.problem);
  if (reader.device().is_cuda()) {
    refuse_unsupported("expected tensors on the CPU, got CUDA tensors; move them");
  }
  call.resources = read_resources(reader, args.exec, args.workspace, args.workspace_bytes);
  return call;
}

}  // namespace attn
