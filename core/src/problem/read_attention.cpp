// The rules of attn/attention.h, argument by argument.
#include "problem/read_attention.h"

#include "problem/growable_struct.h"
#include "problem/read_mask.h"
#include "problem/read_operands.h"
#include "problem/read_positions.h"
#include "problem/refusal.h"

namespace attn {
namespace {

// Reads what the forward left for the backward, and the gradients that come in.
void read_backward_inputs(const attn_attention_backward_args& args, TensorReader& reader,
                          BackwardProblem& problem) {
  problem.out = reader.head_rows(
      out_rows("out", Access::kRead, out_dtypes(problem.query.dtype), problem), args.out);
  problem.lse = reader.row_scalars(lse_rows("lse", Access::kRead, problem), args.lse);
  problem.grad_out = reader.head_rows(
      out_rows("grad_out", Access::kRead, only(problem.out.dtype), problem), args.grad_out);
  if (args.grad_lse) {
    problem.grad_lse =
        reader.row_scalars(lse_rows("grad_lse", Access::kRead, problem), args.grad_lse);
  }
}

void read_grad_bias(const attn_tensor* grad_bias, const attn_tensor* bias, TensorReader& reader,
                    BackwardProblem& problem) {
  if (!bias || problem.bias.dtype == DType::kBool) {
    refuse_argument("expected grad_bias to be NULL, got a tensor; %s",
                    bias ? "a bool bias has no gradient" : "the mask has no bias");
  }
  const int64_t* shape = bias->shape;
  problem.grad_bias =
      reader.scores({.name = "grad_bias",
                     .access = Access::kWritten,
                     .dtypes = only(problem.bias.dtype),
                     .axes = {axis("B", shape[0], "bias"), axis("Hq", shape[1], "bias"),
                              axis("Mq", shape[2], "bias"), axis("Mkv", shape[3], "bias")}},
                    grad_bias);
  problem.grad_bias_sums_b = shape[0] != problem.B;
  problem.grad_bias_sums_h = shape[1] != problem.Hq;
  problem.grad_bias_sums_m = shape[2] != problem.Mq;
  problem.grad_bias_sums_n = shape[3] != problem.Mkv;
}

HeadParameters read_grad_parameters(const char* name, const attn_tensor* gradient, const char* of,
                                    const attn_tensor* parameters, TensorReader& reader,
                                    DType dtype) {
  if (!gradient) return {};
  if (!parameters) {
    refuse_argument("expected %s to be NULL, got a tensor; the mask has no %s", name, of);
  }
  const int ndim = parameters->ndim;
  return reader.head_parameters(
      {.name = name,
       .access = Access::kWritten,
       .dtypes = only(dtype),
       .axes = {axis("Hq", parameters->shape[0], of),
                axis("2 R + 1", ndim > 1 ? parameters->shape[1] : 1, of)}},
      ndim, gradient);
}

void read_gradients(const attn_attention_backward_args& args, const attn_mask& mask,
                    TensorReader& reader, BackwardProblem& problem) {
  const Axis key_width = axis("K", problem.K, "query");
  const Axis value_width = axis("Kv", problem.Kv, "value");
  if (args.grad_query) {
    problem.grad_query = reader.head_rows(
        query_rows("grad_query", Access::kWritten, only(problem.query.dtype), problem, key_width),
        args.grad_query);
  }
  if (args.grad_key) {
    problem.grad_key =
        reader.head_rows(key_rows("grad_key", Access::kWritten, problem, key_width), args.grad_key);
  }
  if (args.grad_value) {
    problem.grad_value = reader.head_rows(
        key_rows("grad_value", Access::kWritten, problem, value_width), args.grad_value);
  }
  if (args.grad_bias) read_grad_bias(args.grad_bias, mask.bias, reader, problem);
  problem.grad_slopes = read_grad_parameters("grad_slopes", args.grad_slopes, "relative.slopes",
                                             mask.relative.slopes, reader, problem.slopes.dtype);
  problem.grad_table = read_grad_parameters("grad_table", args.grad_table, "relative.table",
                                            mask.relative.table, reader, problem.table.dtype);
  problem.grad_sink = read_grad_parameters("grad_sink", args.grad_sink, "sink", mask.sink, reader,
                                           problem.sink.dtype);
  read_grad_positions(args, mask.positions, reader, problem);
}

}  // namespace

ForwardCall read_forward(const attn_attention_forward_args* given, TensorReader::Data data) {
  const attn_attention_forward_args args =
      read_growable<attn_attention_forward_args>("args", given, ATTN_ATTENTION_FORWARD_INIT);
  ForwardCall call;
  ForwardProblem& problem = call.problem;
  TensorReader reader(data);
  read_operands(args.query, args.key, args.value, reader, problem);
  problem.scale = read_scale(args.scale, problem.K);
  read_mask(args.mask, reader, problem);
  problem.out = reader.head_rows(
      out_rows("out", Access::kWritten, out_dtypes(problem.query.dtype), problem), args.out);
  if (args.lse) {
    problem.lse = reader.row_scalars(lse_rows("lse", Access::kWritten, problem), args.lse);
  }
  call.resources = read_resources(reader, args.exec, args.workspace, args.workspace_bytes);
  return call;
}

BackwardCall read_backward(const attn_attention_backward_args* given, TensorReader::Data data) {
  const attn_attention_backward_args args =
      read_growable<attn_attention_backward_args>("args", given, ATTN_ATTENTION_BACKWARD_INIT);
  BackwardCall call;
  BackwardProblem& problem = call.problem;
  TensorReader reader(data);
  read_operands(args.query, args.key, args.value, reader, problem);
  problem.scale = read_scale(args.scale, problem.K);
  const attn_mask mask = read_mask(args.mask, reader, problem);
  read_backward_inputs(args, reader, problem);
  read_gradients(args, mask, reader, problem);
  call.resources = read_resources(reader, args.exec, args.workspace, args.workspace_bytes);
  return call;
}

}  // namespace attn
