# Compares the layout and the exported symbols of this build with the recorded ones.
# cmake -DPRINT_ABI=<program> -DLIBRARY=<libattn> -DNM=<nm> -DRECORDED=<file> -P compare_abi.cmake
execute_process(COMMAND ${PRINT_ABI} OUTPUT_VARIABLE layout COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${NM} --dynamic --defined-only --format=just-symbols ${LIBRARY}
                OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
# LLVM's nm names the version of a version too.
string(REPLACE "ATTN_0@@ATTN_0\n" "ATTN_0\n" symbols "${symbols}")
file(READ ${RECORDED} recorded)
if(NOT recorded STREQUAL "${layout}${symbols}")
  message(FATAL_ERROR "The C ABI differs from ${RECORDED}. Fields and functions may only be added, "
                      "at the end; if that is what happened, record:\n${layout}${symbols}")
endif()
