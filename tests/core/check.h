// Checks that count their failures, for test programs without a framework.
#pragma once

#include <cstdio>

namespace check {

inline int failures = 0;

// Reports one failed check; `context` says in which case.
inline void fail(const char* file, int line, const char* what, const char* context) {
  ++failures;
  std::printf("%s:%d: failed: %s [%s]\n", file, line, what, context);
}

// What main returns.
inline int outcome() {
  if (failures != 0) std::printf("%d checks failed\n", failures);
  return failures == 0 ? 0 : 1;
}

// What main returns where this machine cannot run the test; ctest then reports it as skipped.
constexpr int kSkipped = 77;

}  // namespace check

#define CHECK_IN(context, condition)                                          \
  do {                                                                        \
    if (!(condition)) check::fail(__FILE__, __LINE__, #condition, (context)); \
  } while (false)

#define CHECK(condition) CHECK_IN("", condition)
