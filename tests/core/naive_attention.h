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
  // Sums over many scores, and the sums of what they add up without its signs: rounding errors are
  // relative to those.
  std::vector<double> grad_slopes, grad_table, grad_sink;
  std::vector<double> slopes_terms, table_terms, sink_terms;
  std::vector<double> grad_position_query, grad_position_key;
  std::vector<double> grad_key_table, grad_query_table;  // sums, likewise
  std::vector<double> key_table_terms, query_table_terms;
};

NaiveForward naive_forward(const Arrays& arrays, const attn_mask& mask);

// From the naive forward's own out and lse, not from those in `arrays`.
NaiveBackward naive_backward(const Arrays& arrays, const attn_mask& mask);
