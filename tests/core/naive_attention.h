// The definition of attention as plain loops over the arrays of a call, in double.
#pragma once

#include <vector>

#include "calls.h"

// Contiguous results in the layouts of attn/attention.h.
struct NaiveForward {
  std::vector<double> out, lse;
};

struct NaiveBackward {
  std::vector<double> grad_query, grad_key, grad_value, grad_bias;
};

// Whether band and bias let query i of head h see key j.
bool naive_sees(const Arrays& arrays, const attn_mask& mask, int64_t b, int64_t h, int64_t i,
                int64_t j);

NaiveForward naive_forward(const Arrays& arrays, const attn_mask& mask);

// From the naive forward's own out and lse, not from those in `arrays`.
NaiveBackward naive_backward(const Arrays& arrays, const attn_mask& mask);
