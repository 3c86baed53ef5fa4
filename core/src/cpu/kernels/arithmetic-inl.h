// Arithmetic of sizes and indices, and the constants of powers of two.
#pragma once

#include <cstdint>
#include <limits>

namespace attn::cpu {
namespace {

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t clamp_to(int64_t x, int64_t last) { return x < 0 ? 0 : x < last ? x : last; }

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

template <class Real>
constexpr Real kInfinity = std::numeric_limits<Real>::infinity();

}  // namespace
}  // namespace attn::cpu
