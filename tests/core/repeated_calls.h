// Calls made again: the results have the same bits, whatever ran first.
#pragma once

#include <string>
#include <vector>

#include "calls.h"
#include "check.h"

inline void run_both(Calls& calls) {
  for (Array* array : calls.forward_outputs()) array->fill(kGarbage);
  for (Array* array : calls.backward_outputs()) array->fill(kGarbage);
  CHECK_IN(calls.error.message, calls.run_forward() == ATTN_OK);
  CHECK_IN(calls.error.message, calls.run_backward() == ATTN_OK);
}

// Runs again with another number of threads; on an emulated GPU, in another order.
inline void check_deterministic(const std::string& context, Calls& calls) {
  std::vector<GuardedBytes> before;
  std::vector<Array*> outputs = calls.forward_outputs();
  for (Array* gradient : calls.backward_outputs()) outputs.push_back(gradient);
  for (Array* array : outputs) before.push_back(array->bytes());
  calls.exec.num_threads = calls.exec.num_threads % 3 + 1;
  run_both(calls);
  for (size_t i = 0; i < outputs.size(); ++i) {
    CHECK_IN(context.c_str(), outputs[i]->bytes() == before[i]);
  }
}
