# Whether the CUDA kernels are built, for which GPUs, and with which CUTLASS headers.

# An editable install is a developer's, who would wait for minutes.
set(cuda_by_default auto)
if("${SKBUILD_STATE}" STREQUAL "editable")
  set(cuda_by_default 0)
endif()
set(ATTN_CUDA ${cuda_by_default} CACHE STRING
    "Build the CUDA kernels: 1, 0, or auto: where nvcc is found")
# A GPU also runs what was compiled for an older one of its generation: 80 serves 86 and 89, too.
set(ATTN_CUDA_ARCHITECTURES "75;80;90;100;120" CACHE STRING "The GPUs to compile for, from 75 on")
set(ATTN_CUTLASS_DIR "" CACHE PATH "Folder of CUTLASS' headers, which holds cute/; empty: found")
# An environment's word goes first, since a build inside pip is told nothing else.
foreach(choice IN ITEMS ATTN_CUDA ATTN_CUDA_ARCHITECTURES ATTN_CUTLASS_DIR)
  if(NOT "$ENV{${choice}}" STREQUAL "")
    set_property(CACHE ${choice} PROPERTY VALUE "$ENV{${choice}}")
  endif()
endforeach()

# Makes CMake compile .cu files, with the CUDA runtime linked as told: Static or None.
macro(attn_enable_cuda runtime)
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # each source names its own
  enable_language(CUDA)
  set(CMAKE_CUDA_RUNTIME_LIBRARY ${runtime})
  # CMake 3.25 does not know that nvcc takes C++20.
  foreach(kind IN ITEMS STANDARD EXTENSION)
    if(NOT CMAKE_CUDA20_${kind}_COMPILE_OPTION)
      set(CMAKE_CUDA20_${kind}_COMPILE_OPTION -std=c++20)
    endif()
  endforeach()
endmacro()

# Sets attn_builds_cuda, having found the compiler where it is ON.
macro(attn_choose_cuda)
  set(attn_builds_cuda OFF)
  if(NOT ATTN_CUDA STREQUAL "auto")
    set(attn_builds_cuda ${ATTN_CUDA})
  elseif(NOT ATTN_SANITIZE AND NOT CMAKE_CROSSCOMPILING)
    include(CheckLanguage)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
      set(attn_builds_cuda ON)
    endif()
  endif()
  if(attn_builds_cuda)
    attn_enable_cuda(Static)
  endif()
  message(STATUS "attn: CUDA kernels: ${attn_builds_cuda} (ATTN_CUDA=${ATTN_CUDA})")
endmacro()

# The intermediate forms that a source has kernels for: no kernel uses an instruction newer than
# those of 80, and few serve 75.
function(attn_list_forms source result)
  get_filename_component(name ${source} NAME_WE)
  set(forms 80)
  if(name MATCHES "^(forward_32|forward_64|merge|step)$")
    list(APPEND forms 75)
  endif()
  set(${result} ${forms} PARENT_SCOPE)
endfunction()

# Compiles a source for those of ATTN_CUDA_ARCHITECTURES that its kernels serve, from one of its
# intermediate forms, so half the compiler runs once for all of them. That of 80 is kept as well: the
# driver makes machine code of it for GPUs to come, and of rare kernels for those that they were not
# compiled for.
function(attn_set_architectures source)
  get_filename_component(name ${source} NAME_WE)
  attn_list_forms(${source} forms)
  set(options "")
  foreach(architecture IN LISTS ATTN_CUDA_ARCHITECTURES)
    string(REGEX MATCH "^[0-9]+" number ${architecture})
    if(number GREATER_EQUAL 80)
      set(form 80)
    elseif(75 IN_LIST forms)
      set(form 75)
    else()
      continue()  # refused there
    endif()
    if(NOT (name MATCHES "position" AND number GREATER 90))
      list(APPEND options -gencode=arch=compute_${form},code=sm_${architecture})
    endif()
  endforeach()
  list(APPEND options -gencode=arch=compute_80,code=compute_80)
  set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${options}")
endfunction()

# Compilers of kernels need up to 0.5 GB each: no more of them than memory holds, or cores.
function(attn_limit_cuda_jobs target)
  get_property(pools GLOBAL PROPERTY JOB_POOLS)
  if(NOT pools MATCHES "attn_cuda=")
    cmake_host_system_information(RESULT megabytes QUERY AVAILABLE_PHYSICAL_MEMORY)
    cmake_host_system_information(RESULT cores QUERY NUMBER_OF_LOGICAL_CORES)
    math(EXPR jobs "${megabytes} / 512")
    if(jobs GREATER cores)
      set(jobs ${cores})
    elseif(jobs LESS 1)
      set(jobs 1)
    endif()
    set_property(GLOBAL APPEND PROPERTY JOB_POOLS attn_cuda=${jobs})
  endif()
  set_target_properties(${target} PROPERTIES JOB_POOL_COMPILE attn_cuda)
endfunction()

# Puts the folder of CUTLASS' headers into `result`: the given one, that of the environment's
# CUTLASS_PATH, of the running interpreter's nvidia-cutlass, or of the pinned one, downloaded.
function(attn_find_cutlass result)
  set(wanted cute/arch/mma_sm80.hpp)
  set(requirement ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/cutlass.txt)
  file(SHA256 ${requirement} version)
  string(SUBSTRING ${version} 0 8 version)
  set(pinned ${CMAKE_CURRENT_BINARY_DIR}/cutlass-${version})
  set(in_package cutlass_library/source/include)
  if(ATTN_CUTLASS_DIR)
    set(candidates ${ATTN_CUTLASS_DIR} ${ATTN_CUTLASS_DIR}/include)
  else()
    find_package(Python 3.10 QUIET COMPONENTS Interpreter)
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -c
              "import importlib.util as u; print(u.find_spec('cutlass_library').submodule_search_locations[0])"
      OUTPUT_VARIABLE installed OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    set(candidates $ENV{CUTLASS_PATH} $ENV{CUTLASS_PATH}/include ${installed}/source/include
                   ${pinned}/${in_package})
  endif()
  foreach(attempt IN ITEMS found downloaded)
    foreach(candidate IN LISTS candidates)
      if(EXISTS "${candidate}/${wanted}")
        message(STATUS "attn: CUTLASS in ${candidate}")
        set(${result} ${candidate} PARENT_SCOPE)
        return()
      endif()
    endforeach()
    if(attempt STREQUAL "found" AND NOT ATTN_CUTLASS_DIR)
      execute_process(
        COMMAND "${Python_EXECUTABLE}" -m pip --disable-pip-version-check download --quiet
                --no-deps --require-hashes --dest ${pinned}
                --requirement ${requirement})
      file(GLOB archives ${pinned}/*.whl)
      foreach(archive IN LISTS archives)
        file(ARCHIVE_EXTRACT INPUT ${archive} DESTINATION ${pinned} PATTERNS "${in_package}/*")
      endforeach()
    endif()
  endforeach()
  message(FATAL_ERROR "attn: CUTLASS must be a folder with ${wanted}, got none; pip could not "
                      "download what ${requirement} names: set ATTN_CUTLASS_DIR to a folder of "
                      "its headers, or ATTN_CUDA=0 to build without CUDA")
endfunction()

# How all CUDA sources are compiled; `cutlass` is the folder of its headers. Asserts hinder the
# optimiser.
function(attn_set_cuda_options target cutlass)
  target_include_directories(${target} SYSTEM PRIVATE ${cutlass})
  target_compile_options(${target} PRIVATE
                         -DNDEBUG "$<$<COMPILE_LANGUAGE:CUDA>:-O3;--expt-relaxed-constexpr>")
  attn_limit_cuda_jobs(${target})
endfunction()

# Makes attn_cuda_kernels of src/cuda's files that need nvcc or the CUDA runtime.
function(attn_add_cuda_kernels)
  file(GLOB kernels CONFIGURE_DEPENDS src/cuda/*/*.cu)
  attn_find_cutlass(cutlass)
  find_package(CUDAToolkit REQUIRED)
  add_library(attn_cuda_kernels OBJECT src/cuda/runtime.cpp ${kernels})
  attn_set_cuda_options(attn_cuda_kernels ${cutlass})
  target_link_libraries(attn_cuda_kernels PUBLIC CUDA::cudart_static PRIVATE attn_cuda)
  set_target_properties(attn_cuda_kernels PROPERTIES CXX_VISIBILITY_PRESET hidden
                                                     CUDA_VISIBILITY_PRESET hidden)
  # What ptxas reports is kept beside each object.
  target_compile_options(attn_cuda_kernels PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-Xptxas;-v>")
  set(launcher sh ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/keep_ptxas_report.sh ${CMAKE_CUDA_COMPILER_LAUNCHER})
  set_target_properties(attn_cuda_kernels PROPERTIES CUDA_COMPILER_LAUNCHER "${launcher}")
  foreach(source IN LISTS kernels)
    attn_set_architectures(${source})
  endforeach()
endfunction()
