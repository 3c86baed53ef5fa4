// One instruction set's vectors against scalar arithmetic. VECTOR_HEADER and VECTOR name them,
// VECTOR_FEATURE what the CPU must have, if anything.
#include VECTOR_HEADER

#include <cmath>
#include <cstdio>

#include "chance.h"
#include "check.h"
#include "cpu/simd/vec_array.h"
#include "parallel/flush_subnormals.h"

namespace attn::cpu {
namespace {

using S = VECTOR;
constexpr int W = S::kWidth;

struct Lanes {
  float lane[W];
  explicit Lanes(S::Vec v) { S::store(lane, v); }
};

bool alike(float a, float b) {
  return std::isnan(a) ? std::isnan(b) : bits_from_float(a) == bits_from_float(b);
}

void read_every_half() {
  for (uint32_t first = 0; first < 65536; first += W) {
    uint16_t halves[W];
    for (int l = 0; l < W; ++l) halves[l] = static_cast<uint16_t>(first + l);
    const Lanes bfloat16(S::load_bfloat16(halves)), float16(S::load_float16(halves));
    for (int l = 0; l < W; ++l) {
      CHECK(alike(bfloat16.lane[l], float_from_bfloat16(halves[l])));
      CHECK(alike(float16.lane[l], float_from_float16(halves[l])));
    }
  }
}

// A half and what lies halfway to the next, and either side of that, for either format.
float float_near_half(Generator& generator) {
  const uint32_t bits = static_cast<uint32_t>(generator());
  const uint32_t tail = static_cast<uint32_t>(below(generator, 3)) - 1;
  switch (below(generator, 3)) {
    case 0: return float_from_bits(bits);
    case 1: return float_from_bits((bits & 0xffff0000u) + 0x8000u + tail);
    default: {
      // Exponents that float16 has, subnormal ones included, and some it has not.
      const uint32_t exponent = 100 + static_cast<uint32_t>(below(generator, 50));
      return float_from_bits((bits & 0x807fe000u) | exponent << 23) +
             (one_in(generator, 2) ? 0.0f : float_from_bits((exponent - 11) << 23));
    }
  }
}

void round_to_halves() {
  Generator generator(1);
  for (int i = 0; i < 100000; ++i) {
    float values[W];
    for (float& value : values) value = float_near_half(generator);
    uint16_t bfloat16[W], float16[W];
    S::store_bfloat16(bfloat16, S::load(values));
    S::store_float16(float16, S::load(values));
    for (int l = 0; l < W; ++l) {
      CHECK(alike(float_from_bfloat16(bfloat16[l]),
                  float_from_bfloat16(bfloat16_from_float(values[l]))));
      CHECK(
          alike(float_from_float16(float16[l]), float_from_float16(float16_from_float(values[l]))));
    }
  }
}

template <class Exp2>
void raise_two_by(Exp2 exp2, double tolerance) {
  for (float x = -140.0f; x < 2.0f; x += 1.0f / 512) {
    const float power = Lanes(exp2(S::set1(x))).lane[W - 1];
    const double exact = std::exp2(static_cast<double>(x));
    // Near the smallest normal number the result may be subnormal or 0.
    CHECK(std::fabs(power - exact) <= tolerance * exact + (x < -125.0f ? 0x1p-126 : 0.0));
  }
  CHECK(Lanes(exp2(S::set1(0.0f))).lane[0] == 1.0f);
  CHECK(Lanes(exp2(S::set1(-200.0f))).lane[0] == 0.0f);
  CHECK(Lanes(exp2(S::set1(-HUGE_VALF))).lane[0] == 0.0f);
  CHECK(std::isnan(Lanes(exp2(S::set1(NAN))).lane[0]));
  const FlushSubnormals flush;
  for (float x = -150.0f; x < -127.0f; x += 1.0f / 64) {
    CHECK(Lanes(S::mul(exp2(S::set1(x)), S::set1(2.0f))).lane[0] == 0.0f);
  }
}

template <class Simd>
void raise_two() {
  using Vec = typename Simd::Vec;
  raise_two_by([](Vec x) { return Simd::exp2(x); }, 2.5e-7);
  if constexpr (requires(Vec x) { Simd::rough_exp2(x); }) {
    raise_two_by([](Vec x) { return Simd::rough_exp2(x); }, 3.5e-6);
    for (float x = -1e-6f; x < 1e-6f; x += 1e-8f) {
      CHECK(std::fabs(Lanes(Simd::rough_exp2(S::set1(x))).lane[0] - 1.0f) <= 1.1e-6f);
    }
  }
}

void move_lanes() {
  S::Vec rows[W];
  for (int r = 0; r < W; ++r) rows[r] = S::add(S::iota(), S::set1(100.0f * r));
  S::transpose(rows);
  for (int r = 0; r < W; ++r) {
    for (int l = 0; l < W; ++l) CHECK(Lanes(rows[r]).lane[l] == 100.0f * l + r);
  }
  for (int r = 0; r < W; ++r) rows[r] = S::add(S::iota(), S::set1(100.0f * r));
  const Lanes sums(S::sums_of_lanes(rows));
  for (int r = 0; r < W; ++r) CHECK(sums.lane[r] == W * (100.0f * r + (W - 1) / 2.0f));
  CHECK(S::reduce_add(S::iota()) == W * (W - 1) / 2.0f);
  for (int l = 0; l < W; ++l) {
    const auto distance = S::sub(S::iota(), S::set1(1.0f * l));
    CHECK(S::reduce_max(S::sub(S::set1(7.0f), S::mul(distance, distance))) == 7.0f);
  }
}

void choose_lanes() {
  const auto ones = S::set1(1.0f), twos = S::set1(2.0f), not_a_number = S::set1(NAN);
  const Lanes below_two(S::select(S::less(S::iota(), twos), ones, twos));
  const Lanes at_two(S::select(S::equal(S::iota(), twos), ones, twos));
  for (int l = 0; l < W; ++l) {
    CHECK(below_two.lane[l] == (l < 2 ? 1.0f : 2.0f));
    CHECK(at_two.lane[l] == (l == 2 ? 1.0f : 2.0f));
  }
  CHECK(Lanes(S::select(S::less(not_a_number, ones), ones, twos)).lane[0] == 2.0f);
  CHECK(Lanes(S::select(S::equal(not_a_number, not_a_number), ones, twos)).lane[0] == 2.0f);
  CHECK(Lanes(S::max(ones, twos)).lane[0] == 2.0f && Lanes(S::max(twos, ones)).lane[0] == 2.0f);
}

// Never inlined: main must not use the vectors before it knows that the CPU has them.
[[gnu::noinline]] void run_all() {
  read_every_half();
  round_to_halves();
  raise_two<S>();
  move_lanes();
  choose_lanes();
}

}  // namespace
}  // namespace attn::cpu

int main() {
#ifdef VECTOR_FEATURE
  if (!__builtin_cpu_supports(VECTOR_FEATURE)) {
    std::printf("skipped: this CPU has no %s\n", VECTOR_FEATURE);
    return check::kSkipped;
  }
#endif
  attn::cpu::run_all();
  return check::outcome();
}
