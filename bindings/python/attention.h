// Adds attention_forward and attention_backward to the module.
#pragma once

#include <nanobind/nanobind.h>

namespace attn::python {

void bind_attention(nanobind::module_& module);

}  // namespace attn::python
