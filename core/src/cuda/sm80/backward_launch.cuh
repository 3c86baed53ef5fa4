// Queues the kernels of the backward that come in several widths.
#pragma once

#include <type_traits>

#include "cuda/launch.cuh"
#include "cuda/sm80/key_gradients.cuh"
#include "cuda/sm80/query_gradients.cuh"

namespace attn::cuda::sm80 {

template <class Element, int kWidth>
class BackwardLauncher {
 public:
  using Shape = GradientShape<Element, kWidth>;
  // Three products of matrices for one leave little to gain.
  static constexpr bool kHasPlain = !std::is_same_v<Element, float>;

  BackwardLauncher(const BackwardArguments& arguments, void* stream)
      : a_(arguments), p_(arguments.problem), stream_(stream) {}

  // Takes only what the plain kernels leave if `a.redo_keys` is there.
  void launch_all() {
    if constexpr (kHasPlain) {
      if (a_.redo_keys && !a_.is_one_pass) launch_gradients<false>();
    } else if (!a_.is_one_pass) {
      a_.redo_keys = a_.redo_queries = nullptr;
    }
    launch_gradients<true>();
  }

  template <bool kExtended, bool kPositions = false>
  void launch_gradients() const {
    if (p_.grad_query) {
      launch_one(&query_gradients_kernel<Element, kWidth, kExtended, kPositions>,
                 {.x = tiles_of<Shape>(p_.Mq) * p_.Hq * p_.B});
    }
    if (p_.grad_key || p_.grad_value || a_.stores_grad_bias) {
      launch_one(&key_gradients_kernel<Element, kWidth, kExtended, kPositions>,
                 {.x = tiles_of<Shape>(p_.Mkv) * p_.Hkv * p_.B, .y = Shape::kSumsBoth ? 1 : 2});
    }
  }

 private:
  void launch_one(void (*kernel)(BackwardArguments), Grid grid) const {
    launch(kernel, grid, Shape::kThreads, TileMemory<Element, kWidth>::kBytes, stream_, a_);
  }

  BackwardArguments a_;
  const BackwardProblem& p_;
  void* const stream_;
};

// Of a call with positions.
template <int kWidth>
void launch_gradients_by_position(const BackwardArguments& a, void* stream) {
  BackwardLauncher<RareElement, kWidth>(a, stream).template launch_gradients<true, true>();
}

template <int kWidth>
void launch_gradients(const BackwardArguments& a, void* stream) {
  switch (a.problem.query.dtype) {
    case DType::kFloat16: return BackwardLauncher<Half, kWidth>(a, stream).launch_all();
    case DType::kBFloat16: return BackwardLauncher<BFloat16, kWidth>(a, stream).launch_all();
    default: return BackwardLauncher<float, kWidth>(a, stream).launch_all();
  }
}

}  // namespace attn::cuda::sm80
