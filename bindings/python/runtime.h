// Adds the queries about this library and this machine to the module.
#pragma once

#include <nanobind/nanobind.h>

namespace attn::python {

void bind_runtime(nanobind::module_& module);

}  // namespace attn::python
