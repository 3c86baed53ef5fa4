// What this build and this machine can do.
#pragma once

namespace attn {

// The name of the CPU kernels in use. Throws Refusal if ATTN_CPU_ISA asks for the impossible.
const char* cpu_isa();

// The names of all CPU kernels that run here, most capable first, separated by spaces.
const char* cpu_isas();

// Whether this build has CUDA kernels, and how many devices there are to run them.
bool has_cuda();
int cuda_device_count();

}  // namespace attn
