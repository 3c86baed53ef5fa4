// Tells tensors without gaps from views into a larger buffer, whose gaps others may fill.
#include "problem/memory_range.h"

namespace attn {

bool fills_its_range(const attn_tensor& tensor) {
  int64_t filled = 1;
  unsigned axes_left = (1u << tensor.ndim) - 1;
  while (axes_left != 0) {
    bool found = false;
    for (int axis = 0; axis < tensor.ndim; ++axis) {
      if (!(axes_left >> axis & 1u)) continue;
      const int64_t extent = tensor.shape[axis], stride = tensor.strides[axis];
      const bool moves = extent > 1 && stride != 0;
      if (moves && stride != filled && stride != -filled) continue;
      if (moves) filled *= extent;
      axes_left &= ~(1u << axis);
      found = true;
    }
    if (!found) return false;
  }
  return true;
}

}  // namespace attn
