// Seeded choices for the tests that try many cases.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>

using Generator = std::mt19937;

inline int64_t below(Generator& generator, int64_t limit) {
  return static_cast<int64_t>(generator() % static_cast<uint64_t>(limit));
}

inline bool one_in(Generator& generator, int64_t n) { return below(generator, n) == 0; }

template <class T, size_t n>
T any_of(Generator& generator, const T (&choices)[n]) {
  return choices[below(generator, n)];
}
