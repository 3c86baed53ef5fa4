// The schemas of torch.ops.attn_ops and their kernels, registered when this library is loaded.
#include <torch/csrc/stable/library.h>

#include <string>

#include "attention.h"
#include "attn/mask.h"
#include "merge.h"
#include "multihead_step.h"
#include "operator_stack.h"
#include "step.h"

namespace attn_torch {
namespace {

// The schemas spell ATTN_UNBOUNDED and ATTN_ANCHOR_TOP_LEFT out.
static_assert(ATTN_UNBOUNDED == 9223372036854775807 && ATTN_ANCHOR_TOP_LEFT == 0);

// The order of Inputs: first the arguments of memory_efficient_attention by its names, then those
// of masks, which public operators take by name alone where they can: torch's own way to register a
// gradient wants tensors that have one by position.
const std::string kArguments =
    "Tensor query, Tensor key, Tensor value, Tensor? attn_bias=None, float p=0.0, "
    "float? scale=None, ";
const std::string kMask =
    "SymInt band_left=9223372036854775807, "
    "SymInt band_right=9223372036854775807, int band_anchor=0, Tensor? dropout_seed=None, "
    "Tensor? q_start=None, Tensor? k_start=None, Tensor? k_len=None, SymInt max_q_len=0, "
    "SymInt max_k_len=0, Tensor? block_table=None, SymInt page_size=0, "
    "Tensor? block_offsets=None, Tensor? block_indices=None, SymInt block_size=0, "
    "Tensor? slopes=None, Tensor? table=None, Tensor? sink=None, float softcap=0.0";
const std::string kPublicInputs = kArguments + "*, " + kMask;

// A list of arguments that all must be given.
std::string without_defaults(const std::string& arguments) {
  std::string result;
  bool in_default = false;
  for (const char c : arguments) {
    in_default = c == '=' || (in_default && c != ',');
    if (!in_default) result += c;
  }
  return result;
}

// The same for the operators that Python calls with all of them by position, which is faster.
const std::string kInputs =
    "Tensor query, Tensor key, Tensor value, Tensor? bias, float dropout_p, float? scale, " +
    without_defaults(kMask);

// What operators of relative positions take after that.
const std::string kPositions =
    ", Tensor? position_query=None, Tensor? key_table=None, Tensor? position_key=None, "
    "Tensor? query_table=None, SymInt zero_row=0, Tensor? key_table_rows=None, "
    "Tensor? query_table_rows=None";

void run_attention(StableIValue* values, uint64_t num_arguments, uint64_t num_results) {
  OperatorStack stack(values, num_arguments, num_results);
  const Inputs inputs = pop_inputs(stack);
  std::optional<ScalarType> output_dtype;
  stack.pop(output_dtype);
  stack.push(attention(inputs, output_dtype));
}

void run_attention_forward(StableIValue* values, uint64_t num_arguments, uint64_t num_results) {
  OperatorStack stack(values, num_arguments, num_results);
  const Inputs inputs = pop_inputs(stack);
  std::optional<ScalarType> output_dtype;
  stack.pop(output_dtype);
  const auto [out, lse] = attention_forward(inputs, output_dtype);
  stack.push(out, lse);
}

void run_attention_by_position(StableIValue* values, uint64_t num_arguments, uint64_t num_results) {
  OperatorStack stack(values, num_arguments, num_results);
  Inputs inputs = pop_inputs(stack);
  pop_positions(stack, inputs);
  const auto [out, lse] = attention_forward(inputs, std::nullopt);
  stack.push(out, lse);
}

// Pops the rest of the arguments, of which `count` say what is needed, and pushes the gradients.
void run_backward(OperatorStack& stack, const Inputs& inputs, size_t count) {
  BackwardInputs backward;
  stack.pop(backward.out, backward.lse, backward.grad_out, backward.grad_lse);
  std::array<bool, kNumDifferentiable> needed{};
  for (size_t i = 0; i < count; ++i) stack.pop(needed[i]);
  stack.push(attention_backward(inputs, backward, needed));
}

void run_attention_backward(StableIValue* values, uint64_t num_arguments, uint64_t num_results) {
  OperatorStack stack(values, num_arguments, num_results);
  const Inputs inputs = pop_inputs(stack);
  run_backward(stack, inputs, kNumDifferentiable - kNumPositions);
}

void run_attention_by_position_backward(StableIValue* values, uint64_t num_arguments,
                                        uint64_t num_results) {
  OperatorStack stack(values, num_arguments, num_results);
  Inputs inputs = pop_inputs(stack);
  pop_positions(stack, inputs);
  run_backward(stack, inputs, kNumDifferentiable);
}

void run_attention_step(StableIValue* values, uint64_t num_arguments, uint64_t num_results) {
  OperatorStack stack(values, num_arguments, num_results);
  Tensor query, key, value;
  stack.pop(query, key, value);
  const StepInputs inputs = pop_step_inputs(stack);
  stack.push(attention_step_(query, key, value, inputs));
}

void run_multihead_attention_step(StableIValue* values, uint64_t num_arguments,
                                  uint64_t num_results) {
  OperatorStack stack(values, num_arguments, num_results);
  const LayerInputs layer = pop_layer_inputs(stack);
  const StepInputs inputs = pop_step_inputs(stack);
  stack.push(multihead_attention_step_(layer, inputs));
}

// The same functions serve both devices: the core looks at the tensors.
void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("attention", &run_attention);
  m.impl("attention_with_lse", &run_attention_forward);
  m.impl("_attention", &run_attention);
  m.impl("_unmasked_attention", TORCH_BOX(&unmasked_attention));
  m.impl("_attention_forward", &run_attention_forward);
  m.impl("_attention_backward", &run_attention_backward);
  m.impl("attention_by_position", &run_attention_by_position);
  m.impl("_attention_by_position_backward", &run_attention_by_position_backward);
  m.impl("merge", TORCH_BOX(&merge));
  m.impl("_merge", TORCH_BOX(&merge));
  m.impl("_merge_backward", TORCH_BOX(&merge_backward));
  m.impl("_attention_step_", &run_attention_step);
}

}  // namespace
}  // namespace attn_torch

// Fake kernels, autograd and autocast rules are attn_ops/_torch_ops.py's. An operator that carries
// no autograd of its own begins with an underscore.
STABLE_TORCH_LIBRARY(attn_ops, m) {
  using attn_torch::kArguments;
  using attn_torch::kInputs;
  using attn_torch::kMask;
  using attn_torch::kPositions;
  using attn_torch::kPublicInputs;
  const std::string options = ", ScalarType? output_dtype=None) -> ";
  m.def(("attention(" + kPublicInputs + options + "Tensor").c_str());
  m.def(("attention_with_lse(" + kPublicInputs + options + "(Tensor out, Tensor lse)").c_str());
  m.def("_unmasked_attention(Tensor query, Tensor key, Tensor value, float? scale=None) -> Tensor");
  m.def(("_attention(" + kInputs + options + "Tensor").c_str());
  m.def(("_attention_forward(" + kInputs + options + "(Tensor out, Tensor lse)").c_str());
  const std::string backward =
      ", Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse, bool need_query, "
      "bool need_key, bool need_value, bool need_bias, bool need_slopes, bool need_table, "
      "bool need_sink";
  m.def(("_attention_backward(" + kInputs + backward + ") -> Tensor[]").c_str());
  const std::string by_position = kArguments + kMask + kPositions;
  m.def(("attention_by_position(" + by_position + ") -> (Tensor out, Tensor lse)").c_str());
  m.def(("_attention_by_position_backward(" + by_position + ", *" + backward +
         ", bool need_position_query, bool need_key_table, bool need_position_key, "
         "bool need_query_table) -> Tensor[]")
            .c_str());
  const std::string merge =
      "(Tensor[] chunk_outs, Tensor[] chunk_lses, *, ScalarType? output_dtype=None) "
      "-> (Tensor out, Tensor lse)";
  m.def(("merge" + merge).c_str());
  m.def(("_merge" + merge).c_str());
  m.def(
      "_merge_backward(Tensor[] chunk_outs, Tensor[] chunk_lses, Tensor grad_out, "
      "Tensor? grad_lse, *, bool need_outs, bool need_lses) "
      "-> (Tensor[] grad_chunk_outs, Tensor[] grad_chunk_lses)");
  const std::string step =
      "Tensor(a!) key_ring, Tensor(b!) value_ring, Tensor(c!) position, SymInt window, "
      "Tensor? padding=None, Tensor(d!)? padding_ring=None, Tensor? active=None, "
      "Tensor? bias=None, float? scale=None, Tensor? extra_key=None, "
      "Tensor? extra_value=None, Tensor(e!)? query_ring=None) -> Tensor";
  m.def(("_attention_step_(Tensor query, Tensor key, Tensor value, " + step).c_str());
  m.def(("_multihead_attention_step_(Tensor x, Tensor in_weight, Tensor? in_bias, "
         "Tensor out_weight, Tensor? out_bias, " +
         step)
            .c_str());
}

STABLE_TORCH_LIBRARY_IMPL(attn_ops, CPU, m) {
  attn_torch::register_kernels(m);
  m.impl("_multihead_attention_step_", &attn_torch::run_multihead_attention_step);
}

STABLE_TORCH_LIBRARY_IMPL(attn_ops, CUDA, m) { attn_torch::register_kernels(m); }
