// What attn/runtime.h says about this build and machine, and how ATTN_CPU_ISA and ATTN_NUM_THREADS
// change it. Arguments: the status to expect of attn_cpu_isa, and the thread count or 0 for any.
#include <cstdlib>
#include <cstring>
#include <string>

#include "calls.h"
#include "check.h"
#include "failing_memory.h"

namespace {

bool lists(const std::string& names, const std::string& name) {
  return (" " + names + " ").find(" " + name + " ") != std::string::npos;
}

// A call under an ISA that cannot be used returns the status of attn_cpu_isa, writing nothing.
void check_call(attn_status expected) {
  Calls calls(Arrays(kFloat32, kFloat32, {}, 1));
  mark_unwritten(calls.forward_outputs());
  CHECK_IN(calls.error.message, calls.run_forward() == expected);
  CHECK(expected == ATTN_OK || is_unwritten(calls.forward_outputs()));
  std::vector<char> plenty(1 << 20);
  calls.forward.workspace = plenty.data();
  calls.forward.workspace_bytes = plenty.size();
  CHECK_IN(calls.error.message, attn_attention_forward(&calls.forward, &calls.error) == expected);
  CHECK(expected == ATTN_OK || is_unwritten(calls.forward_outputs()));
}

}  // namespace

int main(int argc, char** argv) {
  const attn_status expected = argc > 1 ? std::atoi(argv[1]) : ATTN_OK;
  const int expected_threads = argc > 2 ? std::atoi(argv[2]) : 0;
  const char* forced = std::getenv("ATTN_CPU_ISA");

  {
    const NoMemory no_memory;  // the first to ask, and answered all the same
    attn_cpu_isas();
  }
  const char* isa = nullptr;
  attn_error error{};
  CHECK_IN(error.message, attn_cpu_isa(&isa, &error) == expected);
  if (expected == ATTN_OK) {
    CHECK_IN(isa, lists(attn_cpu_isas(), isa));
    CHECK_IN(isa, !forced || !*forced || std::strcmp(isa, forced) == 0);
  } else {
    CHECK(isa == nullptr);
    CHECK_IN(error.message, std::strstr(error.message, "ATTN_CPU_ISA"));
    CHECK_IN(error.message, std::strstr(error.message, forced));
  }
  check_call(expected);

  CHECK(lists(attn_cpu_isas(), "scalar"));
  CHECK(attn_num_threads() >= 1);
  CHECK(expected_threads == 0 || attn_num_threads() == expected_threads);
  // Never a failure: without CUDA kernels, a driver or a device there are no devices.
  CHECK(attn_has_cuda() == 0 || attn_has_cuda() == 1);
  CHECK(attn_cuda_device_count() >= 0);
  CHECK(attn_has_cuda() == 1 || attn_cuda_device_count() == 0);
  CHECK_IN(attn_version(), std::string(attn_version()) == ATTN_EXPECTED_VERSION);
  return check::outcome();
}
