// The queries about this library and this machine.
#include "runtime.h"

#include "attn/attn.h"
#include "raise.h"

namespace attn::python {
namespace nb = nanobind;

namespace {

const char* cpu_isa() {
  const char* name = nullptr;
  attn_error error{};
  raise_unless_ok(attn_cpu_isa(&name, &error), error);
  return name;
}

nb::object cpu_isas() { return nb::str(attn_cpu_isas()).attr("split")(); }

}  // namespace

void bind_runtime(nb::module_& module) {
  module.def("version", &attn_version, "Return the release of libattn, \"major.minor.patch\".");
  module.def("cpu_isa", &cpu_isa,
             "Return the name of the CPU kernels in use.\n\n"
             "The best this machine runs, unless the environment's ATTN_CPU_ISA names another.\n"
             "Raises: ValueError if ATTN_CPU_ISA names no kernels, NotImplementedError if this\n"
             "build or machine lacks them.");
  module.def(
      "cpu_isas", &cpu_isas, nb::sig("def cpu_isas() -> list[str]"),
      "Return the names of the CPU kernels this build and machine can run, most capable first.");
  module.def("num_threads", &attn_num_threads,
             "Return the threads a call uses when told 0: ATTN_NUM_THREADS, or the CPUs this\n"
             "process may run on.");
  module.def(
      "has_cuda", [] { return attn_has_cuda() != 0; },
      "Return whether this build contains CUDA kernels.");
  module.def(
      "cuda_device_count", &attn_cuda_device_count,
      "Return the number of CUDA devices that this process can use; 0 without CUDA kernels in\n"
      "this build, or without a driver.");
}

}  // namespace attn::python
