// How every function of the module makes its C call: without the GIL, and raising what it reports.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <optional>

#include "attn/attn.h"
#include "raise.h"
#include "tensor_arg.h"

namespace attn::python {

// For arrays on a GPU the stream, a cudaStream_t; by default that of the framework of `array`.
inline attn_exec make_exec(int32_t num_threads, std::optional<uint64_t> stream,
                           const TensorArg& array) {
  attn_exec exec = ATTN_EXEC_INIT;
  exec.num_threads = num_threads;
  exec.stream =
      stream ? reinterpret_cast<void*>(static_cast<uintptr_t>(*stream)) : array.work_stream();
  return exec;
}

// `call` takes an attn_error to fill in and returns a status; it needs no GIL.
template <class Call>
void run_without_gil(Call call) {
  attn_error error{};
  attn_status status;
  {
    nanobind::gil_scoped_release without_gil;
    status = call(error);
  }
  raise_unless_ok(status, error);
}

}  // namespace attn::python
