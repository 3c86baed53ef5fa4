// Adds merge_forward and merge_backward to the module.
#pragma once

#include <nanobind/nanobind.h>

namespace attn::python {

void bind_merge(nanobind::module_& module);

}  // namespace attn::python
