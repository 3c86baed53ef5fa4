// Products by tile registers against sums in float64: any rows, columns and depth, either layout of
// the left operand, and right operands with infinities and NaN.
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "chance.h"
#include "check.h"
#include "cpu/kernels/multiply-inl.h"
#include "cpu/simd/bfloat16_tiles_amx.h"
#include "cpu/simd/vec_array.h"

namespace attn::cpu {
namespace {

using Op = BFloat16Tiles;
using Floats = std::vector<float>;

struct Shape {
  int64_t rows, columns, depth;  // depth in elements
};

uint16_t random_half(Generator& generator) {
  return bfloat16_from_float(static_cast<float>(below(generator, 512)) / 256.0f - 1.0f);
}

// [rows, depth] and [depth, columns] of bfloat16, and what is packed of them.
struct Operands {
  Shape shape;
  int64_t units, columns;  // packed
  std::vector<uint16_t> left, right;
  Floats row_major, depth_major, panels;

  Operands(Shape s, Generator& generator)
      : shape(s), units(units_of<Op>(s.depth)), columns(round_up(s.columns, 16)) {
    left.resize(s.rows * s.depth), right.resize(s.depth * s.columns);
    for (uint16_t& half : left) half = one_in(generator, 4) ? 0 : random_half(generator);
    for (uint16_t& half : right) half = random_half(generator);
  }

  void pack() {
    const int64_t stride = round_up(units, 16);
    std::vector<const char*> rows(std::max(shape.rows, shape.depth));
    for (int64_t r = 0; r < shape.rows; ++r) {
      rows[r] = reinterpret_cast<const char*>(&left[r * shape.depth]);
    }
    row_major.assign(shape.rows * stride, 0.0f);
    pack_rows<Op>(row_major.data(), stride, rows.data(), DType::kBFloat16, shape.rows, shape.depth);
    const int64_t lines = round_up(shape.rows, 16);
    depth_major.assign(units * lines, NAN);
    for (int64_t r = 0; r < shape.rows; ++r) {
      for (int64_t u = 0; u < units; ++u) {
        std::memcpy(&depth_major[u * lines + r], &row_major[r * stride + u], sizeof(float));
      }
    }
    for (int64_t d = 0; d < shape.depth; ++d) {
      rows[d] = reinterpret_cast<const char*>(&right[d * shape.columns]);
    }
    panels.assign(panel_units<Op>(units, shape.columns), NAN);
    pack_stacked<Op>(panels.data(), rows.data(), DType::kBFloat16, shape.depth, shape.columns);
  }

  // Rows [first, first + rows) of the product, added to sums of 1 if `accumulate`.
  template <bool kDepthMajor>
  Floats multiply(int64_t first, int64_t rows, bool accumulate, bool skip_zeros) const {
    Floats sums(rows * columns, 1.0f);
    Product<Op> product;
    product.a_stride = round_up(kDepthMajor ? shape.rows : units, 16);
    product.a =
        kDepthMajor ? depth_major.data() + first : row_major.data() + first * product.a_stride;
    product.b = panels.data();
    product.b_depth = product.depth = units;
    product.c = sums.data();
    product.c_stride = columns;
    product.rows = rows;
    product.b_columns = product.columns = shape.columns;
    product.accumulate = accumulate;
    product.skip_zeros = skip_zeros;
    Op::Registers registers;
    attn::cpu::multiply<Op, kDepthMajor>(product, registers);
    return sums;
  }

  double exact(int64_t r, int64_t c, bool accumulate, bool skip_zeros) const {
    double sum = accumulate ? 1.0 : 0.0;
    for (int64_t d = 0; d < shape.depth; ++d) {
      const double factor = float_from_bfloat16(left[r * shape.depth + d]);
      if (skip_zeros && factor == 0.0) continue;
      sum += factor * float_from_bfloat16(right[d * shape.columns + c]);
    }
    return sum;
  }
};

bool is_close(float got, double exact) {
  if (std::isnan(exact) || std::isinf(exact)) {
    return std::isnan(exact) ? std::isnan(got) : got == exact;
  }
  return std::fabs(got - exact) <= 1e-5;
}

void check_product(const Operands& operands, bool accumulate, bool skip_zeros) {
  const Shape& shape = operands.shape;
  const Floats sums = operands.multiply<false>(0, shape.rows, accumulate, skip_zeros);
  for (int64_t r = 0; r < shape.rows; ++r) {
    for (int64_t c = 0; c < shape.columns; ++c) {
      CHECK(is_close(sums[r * operands.columns + c], operands.exact(r, c, accumulate, skip_zeros)));
    }
  }
  const auto same = [&](const Floats& part, int64_t first) {
    for (size_t i = 0; i < part.size(); ++i) {
      const float other = sums[first * operands.columns + i];
      if (part[i] != other && !(std::isnan(part[i]) && std::isnan(other))) return false;
    }
    return true;
  };
  CHECK(same(operands.multiply<true>(0, shape.rows, accumulate, skip_zeros), 0));
  // A row is what it is whatever rows are beside it.
  const int64_t last = shape.rows - 1;
  CHECK(same(operands.multiply<false>(last, 1, accumulate, skip_zeros), last));
}

[[gnu::noinline]] void run_all() {
  Generator generator(1);
  for (const Shape shape : {Shape{1, 1, 1}, Shape{16, 16, 32}, Shape{17, 40, 80}, Shape{33, 65, 31},
                            Shape{47, 130, 290}, Shape{128, 64, 512}, Shape{5, 34, 33}}) {
    Operands operands(shape, generator);
    operands.pack();
    for (bool accumulate : {false, true}) {
      check_product(operands, accumulate, false);
      check_product(operands, accumulate, true);
    }
    const Floats finite = operands.multiply<false>(0, shape.rows, true, true);
    CHECK(finite == operands.multiply<false>(0, shape.rows, true, false));
    for (uint16_t special : {uint16_t{0x7fc0}, uint16_t{0x7f80}, uint16_t{0xff80}}) {
      operands.right[below(generator, operands.right.size())] = special;
      operands.pack();
      check_product(operands, true, true);
    }
  }
}

}  // namespace
}  // namespace attn::cpu

int main() {
#ifndef EMULATED
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  if (!__builtin_cpu_supports("avx512bf16") ||
      syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) {
    std::printf("skipped: this CPU has no AMX\n");
    return check::kSkipped;
  }
#endif
  attn::cpu::run_all();
  return check::outcome();
}
