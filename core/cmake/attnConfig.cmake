# find_package(attn) defines attn::attn, the shared library with its headers.
include(${CMAKE_CURRENT_LIST_DIR}/attnTargets.cmake)
