// A C++17 program that uses the installed library: causal attention and its gradients, checked
// against a numerical derivative.
#include <attn/attn.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <vector>

namespace {

constexpr int64_t kLength = 5, kWidth = 3;
constexpr int64_t kShape[] = {1, kLength, 1, kWidth}, kRowShape[] = {1, 1, kLength};
constexpr int64_t kStrides[] = {kLength * kWidth, kWidth, kWidth, 1};
constexpr int64_t kRowStrides[] = {kLength, kLength, 1};

using Values = std::vector<double>;

attn_tensor rows(Values& values) {
  return {values.data(), kShape, kStrides, 4, ATTN_DEVICE_CPU, 0, {ATTN_DTYPE_FLOAT, 64, 1}};
}

attn_tensor row_scalars(Values& values) {
  return {values.data(), kRowShape, kRowStrides, 3, ATTN_DEVICE_CPU, 0, {ATTN_DTYPE_FLOAT, 64, 1}};
}

Values waves(double phase) {
  Values values(kLength * kWidth);
  for (double& value : values) value = std::sin(phase += 1.7);
  return values;
}

void check(attn_status status, const attn_error& error) {
  if (status != ATTN_OK) throw std::runtime_error(error.message);
}

attn_mask causal() {
  attn_mask mask = ATTN_MASK_INIT;
  mask.band.right = 0;
  return mask;
}

struct Forward {
  Values out = Values(kLength * kWidth), lse = Values(kLength);

  Forward(Values& query, Values& key, Values& value) {
    const attn_tensor q = rows(query), k = rows(key), v = rows(value);
    const attn_tensor o = rows(out), l = row_scalars(lse);
    const attn_mask mask = causal();
    attn_attention_forward_args args = ATTN_ATTENTION_FORWARD_INIT;
    args.query = &q;
    args.key = &k;
    args.value = &v;
    args.mask = &mask;
    args.out = &o;
    args.lse = &l;
    attn_error error;
    check(attn_attention_forward_workspace(&args, &args.workspace_bytes, &error), error);
    std::vector<char> workspace(args.workspace_bytes);
    args.workspace = workspace.data();
    check(attn_attention_forward(&args, &error), error);
  }

  double sum() const {
    double total = 0.0;
    for (const double value : out) total += value;
    return total;
  }
};

// The gradient of the sum of the outputs with respect to the query.
Values query_gradient(Values& query, Values& key, Values& value) {
  Forward forward(query, key, value);
  Values ones(kLength * kWidth, 1.0), gradient(kLength * kWidth);
  const attn_tensor q = rows(query), k = rows(key), v = rows(value), o = rows(forward.out);
  const attn_tensor l = row_scalars(forward.lse), g = rows(ones), gq = rows(gradient);
  const attn_mask mask = causal();
  attn_attention_backward_args args = ATTN_ATTENTION_BACKWARD_INIT;
  args.query = &q;
  args.key = &k;
  args.value = &v;
  args.mask = &mask;
  args.out = &o;
  args.lse = &l;
  args.grad_out = &g;
  args.grad_query = &gq;
  attn_error error;
  check(attn_attention_backward_workspace(&args, &args.workspace_bytes, &error), error);
  std::vector<char> workspace(args.workspace_bytes);
  args.workspace = workspace.data();
  check(attn_attention_backward(&args, &error), error);
  return gradient;
}

double largest_difference() {
  Values query = waves(0.0), key = waves(1.0), value = waves(2.0);
  const Values gradient = query_gradient(query, key, value);
  constexpr double kStep = 1e-5;
  double largest = 0.0;
  for (size_t i = 0; i < query.size(); ++i) {
    const double centre = query[i];
    query[i] = centre + kStep;
    const double above = Forward(query, key, value).sum();
    query[i] = centre - kStep;
    const double below = Forward(query, key, value).sum();
    query[i] = centre;
    largest = std::fmax(largest, std::fabs((above - below) / (2 * kStep) - gradient[i]));
  }
  return largest;
}

}  // namespace

int main() {
  try {
    const double difference = largest_difference();
    std::printf("attn %s: gradient within %.1e of the numerical one\n", attn_version(), difference);
    return difference < 1e-8 ? EXIT_SUCCESS : EXIT_FAILURE;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return EXIT_FAILURE;
  }
}
