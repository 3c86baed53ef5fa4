// Products by tile registers against sums in float64: any rows, columns and depth, any layout of
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
#include "cpu/simd/split_tiles_amx.h"
#include "cpu/simd/vec_array.h"

namespace attn::cpu {
namespace {

using Floats = std::vector<float>;

struct Shape {
  int64_t rows, columns, depth;  // depth in elements
};

enum class Left : uint8_t { kPacked, kComputed, kDepthMajor };

// The pieces of an operand's Reals; 1 where they are rounded to bfloat16.
template <class Op>
constexpr int kPiecesOf = 1;
template <HasPieces Op>
constexpr int kPiecesOf<Op> = Op::kPieces;

// What the operand holds to the bit.
template <class Op>
float random_number(Generator& generator) {
  constexpr int64_t kSteps = int64_t{1} << (kPiecesOf<Op> == 1 ? 9 : 8 * kPiecesOf<Op>);
  return static_cast<float>(below(generator, kSteps)) * (2.0f / kSteps) - 1.0f;
}

// [rows, depth] and [depth, columns], and what is packed of them.
template <class Op>
struct Operands {
  static constexpr DType kDType = HasPieces<Op> ? DType::kFloat32 : DType::kBFloat16;
  Shape shape;
  int64_t units, columns, lines;  // of computed rows, and of sums; rows in whole vectors
  Floats left, right;
  Floats packed, computed, depth_major, panels;
  bool is_finite = true;

  Operands(Shape s, Generator& generator)
      : shape(s),
        units(units_of<Op>(s.depth)),
        columns(round_up(s.columns, 16)),
        lines(round_up(s.rows, 16)) {
    left.resize(s.rows * s.depth), right.resize(s.depth * s.columns);
    for (float& x : left) x = one_in(generator, 4) ? 0 : random_number<Op>(generator);
    for (float& x : right) x = random_number<Op>(generator);
  }

  // Rows of `width` numbers in the dtype that is packed.
  static std::vector<char> rows_of(const Floats& numbers, int64_t width,
                                   std::vector<const char*>& rows) {
    const int64_t bytes = element_bytes(kDType);
    std::vector<char> data(numbers.size() * bytes);
    for (size_t i = 0; i < numbers.size(); ++i) {
      const uint16_t half = bfloat16_from_float(numbers[i]);
      std::memcpy(&data[i * bytes], bytes == 2 ? static_cast<const void*>(&half) : &numbers[i],
                  bytes);
    }
    rows.clear();
    for (size_t at = 0; at < data.size(); at += width * bytes) rows.push_back(&data[at]);
    return data;
  }

  void pack() {
    std::vector<const char*> rows;
    const std::vector<char> a = rows_of(left, shape.depth, rows);
    const int64_t stride = row_units<Op>(shape.depth);
    packed.assign(shape.rows * stride, 0.0f);
    pack_rows<Op>(packed.data(), stride, rows.data(), kDType, shape.rows, shape.depth);
    // What lies beyond the depth and the rows is not to be read as numbers.
    computed.assign(shape.rows * round_up(units, 16), NAN);
    depth_major.assign(units * lines + 16, NAN);  // whole vectors from any row on
    for (int64_t r = 0; r < shape.rows; ++r) {
      const float* row = HasPieces<Op> ? &left[r * shape.depth] : &packed[r * stride];
      for (int64_t u = 0; u < units; ++u) {
        std::memcpy(&computed[r * round_up(units, 16) + u], row + u, sizeof(float));
        std::memcpy(&depth_major[u * lines + r], row + u, sizeof(float));
      }
    }
    const std::vector<char> b = rows_of(right, shape.columns, rows);
    panels.assign(panel_units<Op>(units, shape.columns), NAN);
    is_finite = pack_stacked<Op>(panels.data(), rows.data(), kDType, shape.depth, shape.columns);
  }

  // Rows [first, first + rows) of the product, added to sums of 1 if `accumulate`.
  Floats multiply(Left form, int64_t first, int64_t rows, bool accumulate, bool skip_zeros,
                  bool is_turned = false) const {
    Floats sums(rows * columns, 1.0f);
    Product<Op> product;
    product.a_is_packed = form == Left::kPacked;
    product.a_stride = form == Left::kPacked     ? row_units<Op>(shape.depth)
                       : form == Left::kComputed ? round_up(units, 16)
                                                 : lines;
    product.a = form == Left::kPacked     ? packed.data() + first * product.a_stride
                : form == Left::kComputed ? computed.data() + first * product.a_stride
                                          : depth_major.data() + first;
    product.b = panels.data();
    product.b_depth = product.depth = units;
    product.c = sums.data();
    product.c_stride = columns;
    product.rows = rows;
    product.b_columns = product.columns = shape.columns;
    product.accumulate = accumulate;
    product.is_finite = is_finite;
    product.skip_zeros = skip_zeros;
    product.is_turned = is_turned;
    typename Op::Registers registers;
    if (form == Left::kDepthMajor) {
      attn::cpu::multiply<Op, true>(product, registers);
    } else {
      attn::cpu::multiply<Op, false>(product, registers);
    }
    return sums;
  }

  // The product over elements [begin, end) of the depth, of a left operand that holds no others.
  Floats multiply_part(int64_t begin, int64_t end) const {
    Floats sums(shape.rows * columns);
    Product<Op> product;
    product.a = depth_major.data() + begin / Op::kDepth * lines;
    product.a_stride = lines;
    product.b = panels.data();
    product.b_depth = units;
    product.b_begin = begin / Op::kDepth;
    product.depth = units_of<Op>(end - begin);
    product.c = sums.data();
    product.c_stride = columns;
    product.rows = shape.rows;
    product.b_columns = product.columns = shape.columns;
    typename Op::Registers registers;
    attn::cpu::multiply<Op, true>(product, registers);
    return sums;
  }

  double exact_part(int64_t r, int64_t c, int64_t begin, int64_t end) const {
    double sum = 0;
    for (int64_t d = begin; d < end; ++d) {
      sum += static_cast<double>(left[r * shape.depth + d]) *
             static_cast<double>(right[d * shape.columns + c]);
    }
    return sum;
  }

  double exact(int64_t r, int64_t c, bool accumulate, bool skip_zeros) const {
    double sum = accumulate ? 1.0 : 0.0;
    for (int64_t d = 0; d < shape.depth; ++d) {
      const double factor = left[r * shape.depth + d];
      if (skip_zeros && factor == 0.0) continue;
      sum += factor * static_cast<double>(right[d * shape.columns + c]);
    }
    return sum;
  }
};

// The second of two pieces is rounded.
template <class Op>
double tolerance() {
  return kPiecesOf<Op> == 2 ? 1e-4 : 1e-5;
}

bool is_close(float got, double exact, double tolerance) {
  if (std::isnan(exact) || std::isinf(exact)) {
    return std::isnan(exact) ? std::isnan(got) : got == exact;
  }
  return std::fabs(got - exact) <= tolerance;
}

bool is_same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// The product of B's transpose and A's has the same bits, turned.
template <class Op>
void check_turned(Generator& generator) {
  Operands<Op> operands({32, 32, 90}, generator);
  Operands<Op> turned = operands;
  turned.left.clear(), turned.right.clear();
  for (int64_t r = 0; r < 32; ++r) {
    for (int64_t d = 0; d < 90; ++d) turned.left.push_back(operands.right[d * 32 + r]);
  }
  for (int64_t d = 0; d < 90; ++d) {
    for (int64_t c = 0; c < 32; ++c) turned.right.push_back(operands.left[c * 90 + d]);
  }
  operands.pack(), turned.pack();
  const Floats sums = operands.multiply(Left::kPacked, 0, 32, false, false);
  const Floats others = turned.multiply(Left::kPacked, 0, 32, false, false, true);
  for (int64_t r = 0; r < 32; ++r) {
    for (int64_t c = 0; c < 32; ++c) CHECK(sums[r * 32 + c] == others[c * 32 + r]);
  }
}

template <class Op>
void check_product(const Operands<Op>& operands, bool accumulate, bool skip_zeros) {
  const Shape& shape = operands.shape;
  Floats computed;
  for (Left form : {Left::kPacked, Left::kComputed, Left::kDepthMajor}) {
    const Floats sums = operands.multiply(form, 0, shape.rows, accumulate, skip_zeros);
    for (int64_t r = 0; r < shape.rows; ++r) {
      for (int64_t c = 0; c < shape.columns; ++c) {
        CHECK(is_close(sums[r * operands.columns + c], operands.exact(r, c, accumulate, skip_zeros),
                       tolerance<Op>()));
      }
    }
    // A row is what it is whatever rows are beside it.
    const int64_t last = shape.rows - 1;
    const Floats alone = operands.multiply(form, last, 1, accumulate, skip_zeros);
    CHECK(std::equal(alone.begin(), alone.end(), sums.begin() + last * operands.columns, is_same));
    if (form == Left::kComputed) computed = sums;
    if (form == Left::kDepthMajor) {
      CHECK(std::equal(sums.begin(), sums.end(), computed.begin(), is_same));
    }
  }
}

// Depth that begins and ends anywhere, as block sparsity's does.
template <class Op>
void check_parts(const Operands<Op>& operands, Generator& generator) {
  const Shape& shape = operands.shape;
  for (int i = 0; i < 20; ++i) {
    const int64_t begin = below(generator, shape.depth) / 4 * 4;
    int64_t end = begin + 1 + below(generator, shape.depth - begin);
    if (end % 2 != 0 && end < shape.depth) ++end;  // a pair is whole
    const Floats sums = operands.multiply_part(begin, end);
    for (int64_t r = 0; r < shape.rows; ++r) {
      for (int64_t c = 0; c < shape.columns; ++c) {
        CHECK(is_close(sums[r * operands.columns + c], operands.exact_part(r, c, begin, end),
                       tolerance<Op>()));
      }
    }
  }
}

template <class Op>
void check_special(Operands<Op> operands, Generator& generator) {
  for (float special : {NAN, INFINITY, -INFINITY}) {
    operands.right[below(generator, operands.right.size())] = special;
    operands.pack();
    check_product(operands, true, true);
    // Tiles of pairs heed what is not finite only where zeros are to be skipped.
    if (HasPieces<Op>) check_product(operands, true, false);
  }
}

// What is not finite leaves the sums that a zero keeps it out of as they are, to the bit.
template <class Op>
void check_kept_out(Operands<Op> operands) {
  const Shape& shape = operands.shape;
  const int64_t d = shape.depth / 2;
  for (int64_t r = 0; r < shape.rows; ++r) operands.left[r * shape.depth + d] = 0;
  operands.pack();
  const Floats finite = operands.multiply(Left::kPacked, 0, shape.rows, true, true);
  for (int64_t c = 0; c < shape.columns; ++c) operands.right[d * shape.columns + c] = NAN;
  operands.pack();
  CHECK(!operands.is_finite);
  CHECK(finite == operands.multiply(Left::kPacked, 0, shape.rows, true, true));
}

template <class Op>
void check_operand() {
  Generator generator(1);
  check_turned<Op>(generator);
  for (const Shape shape : {Shape{1, 1, 1}, Shape{16, 16, 32}, Shape{17, 40, 80}, Shape{33, 65, 31},
                            Shape{47, 130, 290}, Shape{128, 64, 512}, Shape{5, 34, 33}}) {
    Operands<Op> operands(shape, generator);
    operands.pack();
    for (bool accumulate : {false, true}) {
      check_product(operands, accumulate, false);
      check_product(operands, accumulate, true);
    }
    check_parts(operands, generator);
    check_special(operands, generator);
    check_kept_out(operands);
  }
}

[[gnu::noinline]] void run_all() {
  check_operand<BFloat16Tiles>();
  check_operand<SplitTiles<2>>();
  check_operand<SplitTiles<3>>();
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
