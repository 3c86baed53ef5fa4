// The arguments of one operator call as torch passes them, and the place of its results.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>

#include "expect.h"

namespace attn_torch {

// Arguments are popped in the order of the schema; then results are pushed in theirs.
class OperatorStack {
 public:
  OperatorStack(StableIValue* values, uint64_t num_arguments, uint64_t num_results)
      : values_(values), num_arguments_(num_arguments), num_results_(num_results) {}

  template <class... T>
  void pop(T&... into) {
    ((into = torch::stable::detail::to<T>(values_[popped_++])), ...);
  }

  template <class... T>
  void push(const T&... results) {
    expect(popped_ == num_arguments_ && sizeof...(T) == num_results_,
           "attn_ops: a schema and its kernel disagree");
    uint64_t pushed = 0;
    ((values_[pushed++] = torch::stable::detail::from<T>(results)), ...);
  }

 private:
  StableIValue* values_;
  uint64_t num_arguments_;
  uint64_t num_results_;
  uint64_t popped_ = 0;
};

}  // namespace attn_torch
