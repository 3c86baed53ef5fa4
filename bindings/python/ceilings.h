// Adds the measurements of what this machine can do at most to the module.
#pragma once

#include <nanobind/nanobind.h>

namespace attn::python {

void bind_ceilings(nanobind::module_& module);

}  // namespace attn::python
