# A layer is a folder of src/ that sees only the layers it names.

# attn_add_layer(<name> [SOURCES <file>...] [PUBLIC <target>...] [PRIVATE <target>...])
# makes attn_<name>, whose headers are reached as "<name>/file.h" through an include folder that
# holds nothing else: including a layer that was not named does not compile.
function(attn_add_layer name)
  cmake_parse_arguments(PARSE_ARGV 1 layer "" "" "SOURCES;PUBLIC;PRIVATE")
  set(include_dir ${CMAKE_CURRENT_BINARY_DIR}/layers/${name})
  file(MAKE_DIRECTORY ${include_dir})
  file(CREATE_LINK ${CMAKE_CURRENT_SOURCE_DIR}/src/${name} ${include_dir}/${name} SYMBOLIC)

  if(NOT layer_SOURCES)
    add_library(attn_${name} INTERFACE)
    target_include_directories(attn_${name} INTERFACE ${include_dir})
    target_link_libraries(attn_${name} INTERFACE ${layer_PUBLIC})
    return()
  endif()
  list(TRANSFORM layer_SOURCES PREPEND src/${name}/)
  add_library(attn_${name} OBJECT ${layer_SOURCES})
  target_include_directories(attn_${name} PUBLIC ${include_dir})
  target_link_libraries(attn_${name} PUBLIC ${layer_PUBLIC} PRIVATE ${layer_PRIVATE})
  attn_set_compile_options(attn_${name})
endfunction()

function(attn_set_compile_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra)
  set_target_properties(${target} PROPERTIES CXX_VISIBILITY_PRESET hidden
                                             VISIBILITY_INLINES_HIDDEN ON)
endfunction()
