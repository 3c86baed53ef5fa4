// Imports arrays: the DLPack C exchange first, nanobind's __dlpack__ and buffer protocol next.
#include "tensor_arg.h"

#include <string>

namespace attn::python {
namespace nb = nanobind;

namespace {

// Whether `array` is a NumPy array of ml_dtypes.bfloat16. NumPy refuses to export that type.
bool is_numpy_bfloat16(nb::handle array) {
  nb::object dtype = nb::getattr(array, "dtype", nb::none());
  nb::object name = nb::getattr(dtype, "name", nb::none());
  return name.equal(nb::str("bfloat16")) && nb::hasattr(array, "__array_interface__") &&
         nb::hasattr(array, "view");
}

[[noreturn]] void raise_not_an_array(const char* function, const char* argument, nb::handle array,
                                     Access access) {
  std::string message = std::string(function) + ": " + argument + " must be " +
                        (access == Access::kWrite ? "a writable array" : "an array") +
                        " with DLPack or the buffer protocol, got " +
                        nb::type_name(array.type()).c_str() +
                        "; pass a numpy.ndarray in native byte order or a torch.Tensor";
  throw nb::type_error(message.c_str());
}

}  // namespace

TensorArg::TensorArg(const char* function, const char* argument, nb::handle array, Access access) {
  if (array.is_none()) return;
  present_ = import_exchanged(array) || import_ndarray(array, access);
  if (!present_ && is_numpy_bfloat16(array)) {
    reinterpretation_ = array.attr("view")("uint16");
    present_ = import_ndarray(reinterpretation_, access);
    tensor_.dtype.code = ATTN_DTYPE_BFLOAT;
  }
  if (!present_) raise_not_an_array(function, argument, array, access);
}

void* TensorArg::work_stream() const {
  void* stream = nullptr;
  if (!is_on_gpu() || exchange_ == nullptr || exchange_->current_work_stream == nullptr) {
    return stream;
  }
  if (exchange_->current_work_stream(tensor_.device_type, tensor_.device_id, &stream) != 0) {
    throw nb::python_error();
  }
  return stream;
}

bool TensorArg::import_exchanged(nb::handle array) {
  const DlpackExchange* exchange = find_dlpack_exchange(array);
  if (exchange == nullptr) return false;
  nb::dlpack::dltensor source;
  if (exchange->tensor_from_object(array.ptr(), &source) != 0) {
    PyErr_Clear();
    return false;
  }
  exchange_ = exchange;
  borrow(source);
  return true;
}

bool TensorArg::import_ndarray(nb::handle array, Access access) {
  constexpr bool kNeverConvert = false;
  if (access == Access::kWrite) {
    if (!nb::try_cast(array, owner_, kNeverConvert)) return false;
  } else {
    nb::ndarray<nb::ro> readable;
    if (!nb::try_cast(array, readable, kNeverConvert)) return false;
    owner_ = nb::ndarray<>(readable);
  }
  borrow({.data = owner_.data_handle(),
          .device = {owner_.device_type(), owner_.device_id()},
          .ndim = static_cast<int32_t>(owner_.ndim()),
          .dtype = owner_.dtype(),
          .shape = const_cast<int64_t*>(owner_.shape_ptr()),
          .strides = const_cast<int64_t*>(owner_.stride_ptr()),
          .byte_offset = owner_.byte_offset()});
  return true;
}

void TensorArg::borrow(const nb::dlpack::dltensor& source) {
  tensor_.data = static_cast<char*>(source.data) + source.byte_offset;
  tensor_.shape = source.shape;
  tensor_.strides = source.strides;
  tensor_.ndim = source.ndim;
  // Pinned memory is the CPU's to read and write like any other.
  const bool is_pinned = source.device.device_type == nb::device::cuda_host::value;
  tensor_.device_type = is_pinned ? ATTN_DEVICE_CPU : source.device.device_type;
  tensor_.device_id = is_pinned ? 0 : source.device.device_id;
  tensor_.dtype = {source.dtype.code, source.dtype.bits, source.dtype.lanes};
}

}  // namespace attn::python
