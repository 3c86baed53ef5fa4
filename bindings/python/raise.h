// Turns a status of the C ABI into the built-in Python exception that means the same.
#pragma once

#include <nanobind/nanobind.h>

#include "attn/attn.h"

namespace attn::python {

inline PyObject* exception_for(attn_status status) {
  switch (status) {
    case ATTN_ERROR_INVALID_ARGUMENT: return PyExc_ValueError;
    case ATTN_ERROR_UNSUPPORTED: return PyExc_NotImplementedError;
    case ATTN_ERROR_OUT_OF_MEMORY: return PyExc_MemoryError;
    default: return PyExc_RuntimeError;
  }
}

// Needs the GIL.
inline void raise_unless_ok(attn_status status, const attn_error& error) {
  if (status == ATTN_OK) return;
  PyErr_SetString(exception_for(status), error.message);
  throw nanobind::python_error();
}

}  // namespace attn::python
