// Checks tensors one by one: structure, dtype, device, extents, strides, data.
#include "problem/tensor_reader.h"

#include <cstdio>

#include "problem/refusal.h"

namespace attn {
namespace {

// Row indices are counted in 32 bits by the dropout counter, and sums of two extents must not
// overflow anywhere.
constexpr int64_t kExtentLimit = int64_t{1} << 31;
// No element lies further than this from the first, so that byte offsets fit in 64 bits.
constexpr int64_t kReachLimit = int64_t{1} << 59;

// Stands for the data of an array that is not accessed; keeps "absent" and "empty" apart.
alignas(64) char no_elements[64];

struct DTypeName {
  DType dtype;
  attn_dtype number;
  const char* name;
};

constexpr DTypeName kDTypeNames[] = {
    {DType::kFloat32, {ATTN_DTYPE_FLOAT, 32, 1}, "float32"},
    {DType::kBFloat16, {ATTN_DTYPE_BFLOAT, 16, 1}, "bfloat16"},
    {DType::kFloat16, {ATTN_DTYPE_FLOAT, 16, 1}, "float16"},
    {DType::kFloat64, {ATTN_DTYPE_FLOAT, 64, 1}, "float64"},
    {DType::kBool, {ATTN_DTYPE_BOOL, 8, 1}, "bool"},
    {DType::kInt32, {ATTN_DTYPE_INT, 32, 1}, "int32"},
    {DType::kInt64, {ATTN_DTYPE_INT, 64, 1}, "int64"},
};

// "float32, bfloat16 or bool".
struct DTypeList {
  char text[64] = "";

  explicit DTypeList(DTypes dtypes) {
    size_t used = 0;
    for (const DTypeName& entry : kDTypeNames) {
      if (!(dtypes & only(entry.dtype))) continue;
      dtypes &= ~only(entry.dtype);
      const char* separator = used == 0 ? "" : dtypes ? ", " : " or ";
      used += std::snprintf(text + used, sizeof(text) - used, "%s%s", separator, entry.name);
    }
  }
};

[[noreturn]] void refuse_dtype(const TensorSpec& spec, attn_dtype got) {
  const DTypeList expected(spec.dtypes);
  for (const DTypeName& entry : kDTypeNames) {
    if (got.code != entry.number.code || got.bits != entry.number.bits || got.lanes != 1) continue;
    refuse_argument("expected %s's dtype to be %s, got %s; convert it", spec.name, expected.text,
                    entry.name);
  }
  refuse_argument(
      "expected %s's dtype to be %s, got DLPack code %d with %d bits and %d lanes; "
      "convert it",
      spec.name, expected.text, got.code, got.bits, got.lanes);
}

DType check_dtype(const TensorSpec& spec, attn_dtype got) {
  for (const DTypeName& entry : kDTypeNames) {
    if (got.code == entry.number.code && got.bits == entry.number.bits && got.lanes == 1 &&
        (spec.dtypes & only(entry.dtype))) {
      return entry.dtype;
    }
  }
  refuse_dtype(spec, got);
}

void check_structure(const TensorSpec& spec, int ndim, const attn_tensor* tensor) {
  if (!tensor) refuse_argument("expected %s to be a tensor, got NULL; pass one", spec.name);
  if (tensor->ndim != ndim) {
    refuse_argument("expected %s to have %d axes, got %d; reshape it", spec.name, ndim,
                    tensor->ndim);
  }
  if (!tensor->shape || !tensor->strides) {
    refuse_argument("expected %s's %s to be an array of %d numbers, got NULL; fill it in",
                    spec.name, tensor->shape ? "strides" : "shape", ndim);
  }
}

void check_extent(const TensorSpec& spec, int index, int64_t got) {
  const Axis& axis = spec.axes[index];
  if (got < 0 || got >= kExtentLimit) {
    refuse_argument(
        "expected %s's extent %s (axis %d) to be in [0, 2^31), got %lld; pass the real "
        "shape",
        spec.name, axis.letter, index, static_cast<long long>(got));
  }
  if (axis.extent == kAnyExtent || got == axis.extent || (axis.may_broadcast && got == 1)) return;
  refuse_argument("expected %s's extent %s (axis %d) to be %lld%s%s%s, got %lld; reshape %s",
                  spec.name, axis.letter, index, static_cast<long long>(axis.extent),
                  axis.may_broadcast ? " or 1" : "", *axis.owner ? " as in " : "", axis.owner,
                  static_cast<long long>(got), spec.name);
}

constexpr int64_t magnitude(int64_t stride) { return stride < 0 ? -stride : stride; }

// Refuses strides that carry an element out of reach.
void check_reach(const TensorSpec& spec, int ndim, const attn_tensor& tensor) {
  int64_t reach = 0;
  for (int axis = 0; axis < ndim; ++axis) {
    const int64_t stride = tensor.strides[axis];
    int64_t step;
    if (tensor.shape[axis] <= 1) continue;
    if (stride > kReachLimit || stride < -kReachLimit ||
        __builtin_mul_overflow(magnitude(stride), tensor.shape[axis] - 1, &step) ||
        (reach += step < kReachLimit ? step : kReachLimit) >= kReachLimit) {
      refuse_argument(
          "expected %s's elements within 2^59 of the first, got stride %lld on axis %d; "
          "pass strides in elements",
          spec.name, static_cast<long long>(stride), axis);
    }
  }
}

// Refuses outputs in which two indices meet in one element: taken from the smallest stride up,
// each must step over all that the smaller ones span. Of axes with equal strides the last comes
// first, for the fault is the outer one's.
void check_no_overlap(const TensorSpec& spec, int ndim, const attn_tensor& tensor) {
  bool done[4] = {};
  int64_t span = 0;
  for (int round = 0; round < ndim; ++round) {
    int next = -1;
    int64_t next_stride = 0;
    for (int axis = ndim - 1; axis >= 0; --axis) {
      if (done[axis] || tensor.shape[axis] == 1) continue;
      const int64_t stride = magnitude(tensor.strides[axis]);
      if (next >= 0 && stride >= next_stride) continue;
      next = axis;
      next_stride = stride;
    }
    if (next < 0) return;
    if (next_stride <= span) {
      refuse_argument(
          "expected %s's elements not to overlap, got stride %lld on axis %d; pass an "
          "output whose elements are apart",
          spec.name, static_cast<long long>(tensor.strides[next]), next);
    }
    done[next] = true;
    span += next_stride * (tensor.shape[next] - 1);
  }
}

void check_contiguous_rows(const TensorSpec& spec, const attn_tensor& tensor) {
  const int last = tensor.ndim - 1;
  if (tensor.shape[last] == 1 || tensor.strides[last] == 1) return;
  refuse_argument("expected %s's last stride to be 1, got %lld; make its rows contiguous",
                  spec.name, static_cast<long long>(tensor.strides[last]));
}

}  // namespace

void TensorReader::check_device(const TensorSpec& spec, const attn_tensor& tensor) {
  if (!device_owner_) {
    if (tensor.device_type != ATTN_DEVICE_CPU && tensor.device_type != ATTN_DEVICE_CUDA) {
      refuse_argument(
          "expected %s's device_type to be ATTN_DEVICE_CPU (1) or ATTN_DEVICE_CUDA (2), "
          "got %d; move the tensors",
          spec.name, tensor.device_type);
    }
    device_owner_ = spec.name;
    device_ = {.type = tensor.device_type, .id = tensor.device_id};
  }
  const bool same_id = tensor.device_id == device_.id || device_.type == ATTN_DEVICE_CPU;
  if (tensor.device_type != device_.type || !same_id) {
    refuse_argument("expected %s on the device of %s, type %d id %d, got type %d id %d; move it",
                    spec.name, device_owner_, device_.type, device_.id, tensor.device_type,
                    tensor.device_id);
  }
}

char* TensorReader::check_data(const TensorSpec& spec, DType dtype, const attn_tensor& tensor) {
  const int64_t bytes = element_bytes(dtype);
  if (!tensor.data) {
    refuse_argument("expected %s's data to point to its elements, got NULL; pass the array",
                    spec.name);
  }
  if (reinterpret_cast<uintptr_t>(tensor.data) % bytes != 0) {
    refuse_argument("expected %s's data at a multiple of %lld bytes, got %p; align its elements",
                    spec.name, static_cast<long long>(bytes), tensor.data);
  }
  const MemoryRange range = range_of(tensor, bytes);
  for (const Seen& seen : this->seen()) {
    if (spec.access == Access::kRead && seen.access == Access::kRead) continue;
    const bool same_data = seen.tensor->data == tensor.data;
    if (!same_data &&
        !(range.meets(seen.range) && fills_its_range(tensor) && fills_its_range(*seen.tensor))) {
      continue;
    }
    refuse_argument("expected %s apart from %s, got %s; give it its own memory", spec.name,
                    seen.name, same_data ? "the same data pointer" : "overlapping memory");
  }
  seen_[num_seen_++] = {
      .name = spec.name, .access = spec.access, .tensor = &tensor, .range = range};
  return static_cast<char*>(tensor.data);
}

void TensorReader::check_workspace(const void* workspace, size_t bytes) const {
  const auto begin = reinterpret_cast<uintptr_t>(workspace);
  const MemoryRange range{.begin = begin,
                          .end = bytes < UINTPTR_MAX - begin ? begin + bytes : UINTPTR_MAX};
  for (const Seen& seen : this->seen()) {
    if (!workspace || !range.meets(seen.range) || !fills_its_range(*seen.tensor)) continue;
    refuse_argument("expected workspace apart from %s, got overlapping memory; give it its own",
                    seen.name);
  }
}

TensorReader::View TensorReader::view(const TensorSpec& spec, int ndim, const attn_tensor* tensor,
                                      LastAxis last_axis) {
  check_structure(spec, ndim, tensor);
  View view{.data = no_elements, .dtype = check_dtype(spec, tensor->dtype)};
  check_device(spec, *tensor);
  for (int axis = 0; axis < ndim; ++axis) {
    check_extent(spec, axis, tensor->shape[axis]);
    view.empty |= tensor->shape[axis] == 0;
  }
  if (view.empty) return view;

  check_reach(spec, ndim, *tensor);
  if (last_axis == LastAxis::kContiguous) check_contiguous_rows(spec, *tensor);
  if (spec.access == Access::kWritten) check_no_overlap(spec, ndim, *tensor);
  for (int axis = 0; axis < ndim; ++axis) {
    view.strides[axis] = tensor->shape[axis] == 1 ? 0 : tensor->strides[axis];
  }
  if (data_use_ == Data::kUsed) view.data = check_data(spec, view.dtype, *tensor);
  return view;
}

HeadRows TensorReader::head_rows(const TensorSpec& spec, const attn_tensor* tensor) {
  const View rows = view(spec, 4, tensor, LastAxis::kContiguous);
  return {.data = rows.data,
          .dtype = rows.dtype,
          .stride_b = rows.strides[0],
          .stride_m = rows.strides[1],
          .stride_h = rows.strides[2]};
}

HeadRows TensorReader::table_rows(const TensorSpec& spec, const attn_tensor* tensor) {
  const View rows = view(spec, 3, tensor, LastAxis::kContiguous);
  return {.data = rows.data,
          .dtype = rows.dtype,
          .stride_b = 0,
          .stride_m = rows.strides[1],
          .stride_h = rows.strides[0]};
}

RowScalars TensorReader::row_scalars(const TensorSpec& spec, const attn_tensor* tensor) {
  const View rows = view(spec, 3, tensor);
  return {.data = rows.data,
          .stride_b = rows.strides[0],
          .stride_h = rows.strides[1],
          .stride_m = rows.strides[2]};
}

Scores TensorReader::scores(const TensorSpec& spec, const attn_tensor* tensor) {
  const View all = view(spec, 4, tensor);
  return {.data = all.data,
          .dtype = all.dtype,
          .stride_b = all.strides[0],
          .stride_h = all.strides[1],
          .stride_m = all.strides[2],
          .stride_n = all.strides[3]};
}

HeadParameters TensorReader::head_parameters(const TensorSpec& spec, int ndim,
                                             const attn_tensor* tensor) {
  const View all = view(spec, ndim, tensor);
  return {.data = all.data,
          .dtype = all.dtype,
          .stride_h = all.strides[0],
          .stride = ndim > 1 ? all.strides[1] : 0,
          .width = ndim > 1 ? tensor->shape[1] : 1};
}

StreamValues TensorReader::stream_values(const TensorSpec& spec, int ndim,
                                         const attn_tensor* tensor) {
  const View all = view(spec, ndim, tensor);
  return {.data = all.data, .stride_b = all.strides[0], .stride_r = ndim > 1 ? all.strides[1] : 0};
}

TensorReader::TypedRows TensorReader::rows(const TensorSpec& spec, int ndim,
                                           const attn_tensor* tensor) {
  const View all = view(spec, ndim, tensor, LastAxis::kContiguous);
  return {.rows = {.data = all.data, .stride = ndim > 1 ? all.strides[0] : 0}, .dtype = all.dtype};
}

TensorReader::Integers TensorReader::integers(const TensorSpec& spec, int ndim,
                                              const attn_tensor* tensor) {
  const View all = view(spec, ndim, tensor, LastAxis::kContiguous);
  return {.data = reinterpret_cast<const int32_t*>(all.data),
          .stride = ndim > 1 ? all.strides[0] : 0};
}

}  // namespace attn
