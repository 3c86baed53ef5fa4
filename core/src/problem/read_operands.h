// Reads what every attention call brings, and says what tensors of the same extents must be.
#pragma once

#include "attn/tensor.h"
#include "problem/problem.h"
#include "problem/tensor_reader.h"

namespace attn {

Axis free_axis(const char* letter);  // of any extent
Axis axis(const char* letter, int64_t extent, const char* owner);
Axis broadcast_axis(const char* letter, int64_t extent, const char* owner);  // 1 will do

// Reads query, key and value, which set every extent and the dtype. Throws Refusal.
void read_operands(const attn_tensor* query, const attn_tensor* key, const attn_tensor* value,
                   TensorReader& reader, Problem& problem);

// ATTN_SCALE_DEFAULT stands for K^-0.5. Throws Refusal.
double read_scale(double scale, int64_t K);

// An array of query's rows, or of key's, whose last extent is `width`.
TensorSpec query_rows(const char* name, Access access, DTypes dtypes, const Problem& problem,
                      Axis width);
TensorSpec key_rows(const char* name, Access access, const Problem& problem, Axis width);
TensorSpec out_rows(const char* name, Access access, DTypes dtypes, const Problem& problem);
TensorSpec lse_rows(const char* name, Access access, const Problem& problem);

// What out and lse may be for inputs of a dtype.
DTypes out_dtypes(DType inputs);
DTypes lse_dtypes(DType inputs);

}  // namespace attn
