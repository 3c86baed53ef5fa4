// Lets a C call borrow the memory of any Python array, without a copy.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "attn/attn.h"
#include "dlpack_exchange.h"

namespace attn::python {

enum class Access { kRead, kWrite };

// One array argument as an attn_tensor. Valid while the Python object is; destroyed with the GIL.
class TensorArg {
 public:
  // Takes None (NULL to the C call), an array with DLPack, one with the buffer protocol, or a NumPy
  // array of ml_dtypes' bfloat16, which offers neither. Throws TypeError, naming `function` and
  // `argument`, for anything else and for a read-only array where `access` is kWrite.
  TensorArg(const char* function, const char* argument, nanobind::handle array, Access access);
  TensorArg(const TensorArg&) = delete;
  TensorArg& operator=(const TensorArg&) = delete;

  const attn_tensor* get() const { return present_ ? &tensor_ : nullptr; }

  bool is_on_gpu() const { return present_ && tensor_.device_type == ATTN_DEVICE_CUDA; }
  // The stream that its framework works on, a cudaStream_t. NULL, the legacy default stream, if the
  // array came by __dlpack__: on that one it is ready.
  void* work_stream() const;

 private:
  bool import_exchanged(nanobind::handle array);
  bool import_ndarray(nanobind::handle array, Access access);
  void borrow(const nanobind::dlpack::dltensor& source);

  attn_tensor tensor_{};
  nanobind::ndarray<> owner_;                 // keeps shape and strides of an imported array
  nanobind::object reinterpretation_;         // keeps the uint16 view of a bfloat16 array
  const DlpackExchange* exchange_ = nullptr;  // it came by
  bool present_ = false;
};

}  // namespace attn::python
