# Installs the library, the headers, and what find_package(attn) and pkg-config read.
# The destinations suit a plain prefix and, under scikit-build-core, the folder of the package.
include(CMakePackageConfigHelpers)

set(package_dir lib/cmake/attn)
set(generated_dir ${CMAKE_CURRENT_BINARY_DIR}/generated)
configure_file(cmake/attn.pc.in ${generated_dir}/attn.pc @ONLY)
write_basic_package_version_file(${generated_dir}/attnConfigVersion.cmake
                                 VERSION ${PROJECT_VERSION} COMPATIBILITY SameMinorVersion)

if(DEFINED SKBUILD)
  install(TARGETS attn EXPORT attnTargets LIBRARY DESTINATION lib NAMELINK_SKIP)
else()
  install(TARGETS attn EXPORT attnTargets LIBRARY DESTINATION lib)
endif()
install(TARGETS attn_headers EXPORT attnTargets)
install(EXPORT attnTargets NAMESPACE attn:: DESTINATION ${package_dir})
install(DIRECTORY include/attn DESTINATION include)
install(FILES cmake/attnConfig.cmake ${generated_dir}/attnConfigVersion.cmake
        DESTINATION ${package_dir})
install(FILES ${generated_dir}/attn.pc DESTINATION lib/pkgconfig)
