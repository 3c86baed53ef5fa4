# The registry of CPU kernels: each file of src/cpu/isa with the flags that only it is built with.

# No fast-math: NaN and infinity carry meaning here. No contraction: each ISA rounds as written.
# No LTO, ever: it could move code built for one ISA into another's path.
# Units are containers that hold one or two elements, so types may alias.
set(ATTN_KERNEL_OPTIMIZATION -O3 CACHE STRING "What the CPU kernels are compiled with, for speed")
set(attn_kernel_flags ${ATTN_KERNEL_OPTIMIZATION} -ffp-contract=off -fno-math-errno
                      -fno-strict-aliasing -fno-exceptions -fno-rtti -fno-lto)
if(CMAKE_CXX_COMPILER_ID MATCHES Clang)  # says of each loop that it was asked for and left alone
  list(APPEND attn_kernel_flags -Wno-pass-failed)
endif()
if(ATTN_SANITIZE)  # instrumented, whole kernels in one function compile slowest
  list(APPEND attn_kernel_flags -fno-inline-functions-called-once)
endif()

set(attn_isa_scalar_flags "")
set(attn_isa_neon_flags -march=armv8-a)
set(attn_isa_avx2_flags -mavx2 -mfma -mf16c)
set(attn_isa_avx512_flags ${attn_isa_avx2_flags} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  # GCC 12's headers start from registers left undefined on purpose, and warn of them.
  list(APPEND attn_isa_avx512_flags -Wno-uninitialized -Wno-maybe-uninitialized)
endif()
set(attn_isa_avx512_bf16_flags ${attn_isa_avx512_flags} -mavx512bf16)
set(attn_isa_amx_bf16_flags ${attn_isa_avx512_bf16_flags} -mamx-tile -mamx-bf16)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(attn_isas scalar avx2 avx512 avx512_bf16 amx_bf16)
  set(attn_cpu_candidates cpu_x86_64.cpp)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(attn_isas scalar neon)
  set(attn_cpu_candidates cpu_aarch64.cpp)
else()
  set(attn_isas scalar)
  set(attn_cpu_candidates cpu_scalar.cpp)
endif()

# Read by the tests, some of which compile kernels for themselves.
set_property(GLOBAL PROPERTY attn_isas ${attn_isas})
set_property(GLOBAL PROPERTY attn_cpu_candidates ${attn_cpu_candidates})
set_property(GLOBAL PROPERTY attn_kernel_flags ${attn_kernel_flags})
foreach(isa IN LISTS attn_isas)
  set_property(GLOBAL PROPERTY attn_isa_${isa}_flags ${attn_isa_${isa}_flags})
endforeach()

# Instrumenting what this machine cannot run takes minutes and finds nothing: it is only compiled.
if(ATTN_SANITIZE AND EXISTS /proc/cpuinfo)
  file(STRINGS /proc/cpuinfo machine_flags REGEX "^flags" LIMIT_COUNT 1)
  set(isas avx2 avx512 avx512_bf16 amx_bf16)
  set(cpu_flags avx2 avx512f avx512_bf16 amx_bf16)
  foreach(isa cpu_flag IN ZIP_LISTS isas cpu_flags)
    if(NOT "${machine_flags} " MATCHES " ${cpu_flag} ")
      list(APPEND attn_isa_${isa}_flags -fno-sanitize=all)
    endif()
  endforeach()
endif()

# Makes one object library per ISA and lists them in attn_instruction_set_targets.
function(attn_add_instruction_sets)
  set(targets "")
  foreach(isa IN LISTS attn_isas)
    add_library(attn_cpu_${isa} OBJECT src/cpu/isa/${isa}.cpp)
    target_compile_options(attn_cpu_${isa} PRIVATE ${attn_kernel_flags} ${attn_isa_${isa}_flags})
    target_link_libraries(attn_cpu_${isa} PRIVATE attn_cpu)
    attn_set_compile_options(attn_cpu_${isa})
    list(APPEND targets attn_cpu_${isa})
  endforeach()
  set(attn_instruction_set_targets ${targets} PARENT_SCOPE)
endfunction()
