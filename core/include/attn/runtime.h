/* Where a call runs (threads, stream), and what this library and this machine can do. */
#ifndef ATTN_RUNTIME_H
#define ATTN_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#include "attn/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Runs items [begin, end) of one parallel loop; never throws. */
typedef void (*attn_task)(int64_t begin, int64_t end, void* context);

/* Splits [begin, end) into chunks of at least `grain` items, runs `task` on each, and returns when
   all are done. It may run them on any threads, or all on the calling one. */
typedef void (*attn_parallel_for)(int64_t begin, int64_t end, int64_t grain, attn_task task,
                                  void* context, void* executor);

/* How to run one call. Initialise with ATTN_EXEC_INIT; NULL in its place means the same. */
typedef struct attn_exec {
  size_t struct_size;  /* sizeof(attn_exec) */
  int32_t num_threads; /* at most this many; 0: attn_num_threads(). Results do not depend on it. */
  int32_t reserved;    /* 0 */
  attn_parallel_for parallel_for; /* NULL: the library's own pool */
  void* executor;                 /* passed to parallel_for */
  void* stream;                   /* cudaStream_t; unused on the CPU */
} attn_exec;

#define ATTN_EXEC_INIT {sizeof(attn_exec), 0, 0, NULL, NULL, NULL}

/* Returns the release, "major.minor.patch"; static storage. */
ATTN_API const char* attn_version(void) ATTN_NOEXCEPT;

/* Stores the name of the CPU kernels in use: "scalar", "avx2", "avx512", "avx512_bf16",
   "amx_bf16" or "neon". The best this machine runs, unless the environment's ATTN_CPU_ISA names
   another one; it is read once. On Linux this asks for the tile registers of AMX, which a process
   may not use otherwise. Returns ATTN_ERROR_INVALID_ARGUMENT if ATTN_CPU_ISA names none,
   ATTN_ERROR_UNSUPPORTED if it names one this build or machine lacks; every other call then returns
   the same. */
ATTN_API attn_status attn_cpu_isa(const char** name, attn_error* error) ATTN_NOEXCEPT;

/* Returns the names this build and machine can run, most capable first, separated by spaces; static
   storage. Asks for AMX's tile registers, as attn_cpu_isa does. */
ATTN_API const char* attn_cpu_isas(void) ATTN_NOEXCEPT;

/* Returns the threads a call uses when its attn_exec names none: the environment's
   ATTN_NUM_THREADS if it is a number from 1 to 1024, else the number of CPUs in this process'
   affinity mask. */
ATTN_API int32_t attn_num_threads(void) ATTN_NOEXCEPT;

/* Returns 1 if this build contains CUDA kernels, else 0. */
ATTN_API int32_t attn_has_cuda(void) ATTN_NOEXCEPT;

/* Returns the number of CUDA devices that this process can use; 0 without CUDA kernels in this
   build, or without a driver. */
ATTN_API int32_t attn_cuda_device_count(void) ATTN_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif /* ATTN_RUNTIME_H */
