// Turns the attn_tensors of one call into the arrays of a Problem, refusing what breaks the
// contract of attn/tensor.h and attn/attention.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "attn/tensor.h"
#include "problem/device.h"
#include "problem/linear_problem.h"
#include "problem/memory_range.h"
#include "problem/problem.h"
#include "problem/step_problem.h"

namespace attn {

// A set of DTypes, one bit each.
using DTypes = unsigned;
constexpr DTypes only(DType dtype) { return 1u << static_cast<unsigned>(dtype); }
constexpr DTypes kHalfOrSingle =
    only(DType::kFloat32) | only(DType::kBFloat16) | only(DType::kFloat16);
constexpr DTypes kFloating = kHalfOrSingle | only(DType::kFloat64);

constexpr int64_t kAnyExtent = -1;

// What one axis of a tensor must be.
struct Axis {
  const char* letter;          // as in attn/attention.h: "Mq"
  int64_t extent;              // or kAnyExtent
  const char* owner = "";      // the argument that set the extent: "query"
  bool may_broadcast = false;  // an extent of 1 will do
};

enum class Access { kRead, kWritten };

// What one tensor argument must be.
struct TensorSpec {
  const char* name;
  Access access;
  DTypes dtypes;
  Axis axes[4];  // axes [0, ndim)
};

class TensorReader {
 public:
  enum class Data {
    kUsed,     // the call will read and write the arrays
    kIgnored,  // a workspace query: pointers may be anything
  };
  explicit TensorReader(Data data) : data_use_(data) {}

  // [B, M, H, width]; the last axis must be contiguous.
  HeadRows head_rows(const TensorSpec& spec, const attn_tensor* tensor);
  // [H, rows, width] as [rows, H, width] without B; the last axis must be contiguous.
  HeadRows table_rows(const TensorSpec& spec, const attn_tensor* tensor);
  // [B, Hq, Mq], any strides.
  RowScalars row_scalars(const TensorSpec& spec, const attn_tensor* tensor);
  // [B, Hq, Mq, Mkv], any strides; axes of extent 1 broadcast.
  Scores scores(const TensorSpec& spec, const attn_tensor* tensor);
  // [Hq] or [Hq, width], any strides.
  HeadParameters head_parameters(const TensorSpec& spec, int ndim, const attn_tensor* tensor);
  // [B] or [B, R], any strides.
  StreamValues stream_values(const TensorSpec& spec, int ndim, const attn_tensor* tensor);
  struct TypedRows {
    Rows rows;
    DType dtype;
  };
  // [rows, width] or [width]; the last axis must be contiguous.
  TypedRows rows(const TensorSpec& spec, int ndim, const attn_tensor* tensor);
  struct Integers {
    const int32_t* data;  // never null
    int64_t stride;       // of the first of two axes
  };
  // int32 with `ndim` (1 or 2) axes, the last one contiguous.
  Integers integers(const TensorSpec& spec, int ndim, const attn_tensor* tensor);

  // Whether the arrays themselves may be read: kernels on a GPU must live with what they hold.
  bool reads_data() const { return data_use_ == Data::kUsed && !device_.is_cuda(); }
  // The device that all tensors read so far are on.
  Device device() const { return device_; }

  // A tensor whose array the call uses.
  struct Seen {
    const char* name;
    Access access;
    const attn_tensor* tensor;
    MemoryRange range;
  };
  // Those read so far.
  std::span<const Seen> seen() const { return {seen_, static_cast<size_t>(num_seen_)}; }
  // Refuses a workspace (NULL: none) that overlaps one of them.
  void check_workspace(const void* workspace, size_t bytes) const;

 private:
  // The parts of a valid tensor. Strides of axes that never advance are 0, and data is never NULL.
  struct View {
    char* data;
    DType dtype;
    bool empty = false;
    int64_t strides[4] = {0, 0, 0, 0};
  };
  static constexpr int kMostTensors = 40;

  enum class LastAxis { kAny, kContiguous };
  View view(const TensorSpec& spec, int ndim, const attn_tensor* tensor,
            LastAxis last_axis = LastAxis::kAny);
  void check_device(const TensorSpec& spec, const attn_tensor& tensor);
  char* check_data(const TensorSpec& spec, DType dtype, const attn_tensor& tensor);

  Data data_use_;
  const char* device_owner_ = nullptr;  // the first tensor read
  Device device_;
  Seen seen_[kMostTensors];
  int num_seen_ = 0;
};

}  // namespace attn
