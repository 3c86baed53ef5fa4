// CUTLASS' wrappers of instructions that C++ does not reach, for the pass that compiles kernels.
//
// The compiler's pass for the host, which only launches them, would take seconds to read these.
#pragma once

#include "cuda/device/platform.cuh"

#if defined(__CUDA_ARCH__)
// To CUTLASS: where there is no libcu++. Of that it would use `swap` alone, but read all the
// ranges, whose variables the host's pass would then have to know.
#define __QNX__
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm80.hpp>
#include <cute/arch/mma_sm75.hpp>
#include <cute/arch/mma_sm80.hpp>
#undef __QNX__
#endif
