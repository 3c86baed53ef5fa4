// Translates torch's tensor metadata to the C ABI's, and allocates outputs.
#include "tensor_view.h"

#include <array>
#include <cstddef>

#include "expect.h"

namespace attn_torch {
namespace {

constexpr size_t kMaxOutputDims = 5;

attn_dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return {ATTN_DTYPE_FLOAT, 32, 1};
    case ScalarType::BFloat16: return {ATTN_DTYPE_BFLOAT, 16, 1};
    case ScalarType::Half: return {ATTN_DTYPE_FLOAT, 16, 1};
    case ScalarType::Double: return {ATTN_DTYPE_FLOAT, 64, 1};
    case ScalarType::Bool: return {ATTN_DTYPE_BOOL, 8, 1};
    case ScalarType::Int: return {ATTN_DTYPE_INT, 32, 1};
    case ScalarType::Long: return {ATTN_DTYPE_INT, 64, 1};
    default: break;
  }
  // The core refuses it and names the argument, which this function does not know.
  const auto bits = static_cast<uint8_t>(tensor.element_size() * 8);
  return {ATTN_DTYPE_UINT, bits, 1};
}

Tensor empty_contiguous(const int64_t* shape, size_t ndim, ScalarType dtype, const Tensor& beside) {
  expect(ndim <= kMaxOutputDims, "attn_ops: an output has at most ", kMaxOutputDims,
         " dimensions, got ", ndim);
  std::array<int64_t, kMaxOutputDims> strides;
  int64_t stride = 1;
  for (size_t axis = ndim; axis-- > 0;) {
    strides[axis] = stride;
    stride *= shape[axis] > 1 ? shape[axis] : 1;
  }
  const auto torch_dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  const bool is_cpu = beside.is_cpu();
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(ndim), shape, strides.data(), torch_dtype,
      is_cpu ? aoti_torch_device_type_cpu() : aoti_torch_device_type_cuda(),
      is_cpu ? 0 : beside.get_device_index(), &handle));
  return Tensor(handle);
}

}  // namespace

attn_tensor view(const Tensor& tensor) {
  const bool is_cpu = tensor.is_cpu();
  return {
      .data = const_cast<void*>(tensor.const_data_ptr()),
      .shape = tensor.sizes().data(),
      .strides = tensor.strides().data(),
      .ndim = static_cast<int32_t>(tensor.dim()),
      .device_type = is_cpu ? ATTN_DEVICE_CPU : ATTN_DEVICE_CUDA,
      .device_id = is_cpu ? 0 : tensor.get_device_index(),
      .dtype = dtype_of(tensor),
  };
}

bool has_contiguous_rows(const Tensor& tensor) {
  return tensor.size(-1) == 1 || tensor.stride(-1) == 1 || tensor.numel() == 0;
}

Tensor empty(std::initializer_list<int64_t> shape, ScalarType dtype, const Tensor& beside) {
  return empty_contiguous(shape.begin(), shape.size(), dtype, beside);
}

Tensor empty_contiguous_like(const Tensor& like) {
  const auto sizes = like.sizes();
  return empty_contiguous(sizes.data(), sizes.size(), like.scalar_type(), like);
}

}  // namespace attn_torch
