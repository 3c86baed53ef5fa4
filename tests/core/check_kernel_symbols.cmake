# Fails if an object built for one ISA holds a symbol that the linker may share with other objects:
# code for AVX-512 could then run on every machine.
# cmake -DNM=<nm> -DOBJECTS=<file,...> -P check_kernel_symbols.cmake
string(REPLACE "," ";" objects "${OBJECTS}")
if(NOT objects)
  message(FATAL_ERROR "expected OBJECTS to name object files, got none")
endif()
foreach(object IN LISTS objects)
  execute_process(COMMAND ${NM} --demangle ${object} OUTPUT_VARIABLE symbols
                  COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]* [WVu] [^\n]*" shared "${symbols}")
  list(FILTER shared EXCLUDE REGEX "DW\\.ref\\.")
  if(shared)
    string(REPLACE ";" "\n" shared "${shared}")
    message(SEND_ERROR "${object} shares these symbols; give them internal linkage:\n${shared}")
  endif()
  # A table that is filled at load time would run wide instructions on any machine.
  if(symbols MATCHES "_GLOBAL__sub_I[^\n]*")
    message(SEND_ERROR "${object} runs code when loaded: ${CMAKE_MATCH_0}; make it constexpr")
  endif()
endforeach()
