// The extension module attn_ops._native: the C ABI for Python, with no torch and no NumPy.
#include <nanobind/nanobind.h>

#include "attention.h"
#include "ceilings.h"
#include "merge.h"
#include "runtime.h"

NB_MODULE(_native, module) {
  module.doc() = "Out-variant attention on any array with DLPack or the buffer protocol.";
  attn::python::bind_attention(module);
  attn::python::bind_merge(module);
  attn::python::bind_runtime(module);
  attn::python::bind_ceilings(module);
}
