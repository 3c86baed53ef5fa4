// Each primitive of core/src/cuda/device against plain loops.
#include <cmath>
#include <random>
#include <type_traits>
#include <vector>

#include "check.h"
#include "cuda/device/arithmetic.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/device/matrix.cuh"
#include "cuda/device/turns.cuh"
#include "cuda/device/warp.cuh"
#include "cuda/launch.cuh"
#include "gpu_arithmetic.h"
#include "problem/refusal.h"

namespace {

using namespace attn::cuda;

constexpr int kThreads = 128;

template <class Element>
uint16_t bits_of(float x) {
  return std::is_same_v<Element, Half> ? gpu::to_half(x) : gpu::to_bfloat16(x);
}
template <class Element>
float number_of(uint16_t bits) {
  return std::is_same_v<Element, Half> ? gpu::from_half(bits) : gpu::from_bfloat16(bits);
}

// One warp's product of a [16, 16] and b, given as [8, 16] or, transposed, [16, 8]; d [16, 8].
struct ProductArguments {
  const uint16_t* a;
  const uint16_t* b;
  float* d;
};

template <class Element, bool transposed>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(32, 1) product(ATTN_ARGUMENTS const ProductArguments p) {
  uint16_t* a = reinterpret_cast<uint16_t*>(shared_memory());
  uint16_t* b = a + 16 * 16;
  copy_async<16>(a + 8 * lane(), p.a + 8 * lane(), true);
  const bool present = lane() < 16;
  if (present) copy_async<16>(b + 8 * lane(), p.b + 8 * lane(), true);
  commit_copies();
  wait_for_copies<0>();
  synchronise_warp();
  uint32_t fa[4], fb[4];
  // A's quarters (0, 0), (8, 0), (0, 8), (8, 8); B's halves twice.
  load_matrices(fa, a + (lane() % 16) * 16 + lane() / 16 * 8);
  if constexpr (transposed) {
    load_matrices_transposed(fb, b + (lane() % 16) * 8);
  } else {
    load_matrices(fb, b + (lane() % 8) * 16 + lane() / 8 % 2 * 8);
  }
  float d[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  multiply_accumulate<Element>(d, fa, {fb[0], fb[1]});
  for (int i = 0; i < 4; ++i) p.d[(lane() / 4 + i / 2 * 8) * 8 + lane() % 4 * 2 + i % 2] = d[i];
}

template <class Element, bool transposed>
void test_product(const char* name) {
  std::mt19937 generator(1);
  std::vector<uint16_t> a(16 * 16), b(16 * 8);
  std::vector<float> d(16 * 8, NAN);
  // Small integers: exact in every element and sum.
  const auto fill = [&](std::vector<uint16_t>& x) {
    for (uint16_t& e : x) e = bits_of<Element>(static_cast<float>(generator() % 15) - 7);
  };
  fill(a), fill(b);
  launch(product<Element, transposed>, {}, 32, 16 * 24 * sizeof(uint16_t), nullptr,
         ProductArguments{a.data(), b.data(), d.data()});
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float sum = 1.0f;
      for (int k = 0; k < 16; ++k) {
        const uint16_t right = transposed ? b[k * 8 + j] : b[j * 16 + k];
        sum += number_of<Element>(a[i * 16 + k]) * number_of<Element>(right);
      }
      CHECK_IN(name, d[i * 8 + j] == sum);
    }
  }
}

struct Tf32Arguments {
  const float* a;  // [16, 8]
  const float* b;  // [8, 8]
  float* d;        // [16, 8]
};

ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(32, 1) product_tf32(ATTN_ARGUMENTS const Tf32Arguments p) {
  const int g = lane() / 4, t = lane() % 4;
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = to_tf32(p.a[(g + i % 2 * 8) * 8 + t + i / 2 * 4]);
  for (int i = 0; i < 2; ++i) b[i] = to_tf32(p.b[(t + 4 * i) * 8 + g]);
  float d[4] = {};
  multiply_accumulate_tf32(d, a, b);
  for (int i = 0; i < 4; ++i) p.d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

void test_product_tf32() {
  std::mt19937 generator(2);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<float> a(16 * 8), b(8 * 8), d(16 * 8, NAN);
  for (float& x : a) x = uniform(generator);
  for (float& x : b) x = uniform(generator);
  launch(product_tf32, {}, 32, 0, nullptr, Tf32Arguments{a.data(), b.data(), d.data()});
  float worst = 0.0f;
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float sum = 0.0f;
      for (int k = 0; k < 8; ++k) sum += a[i * 8 + k] * b[k * 8 + j];
      worst = std::fmax(worst, std::fabs(d[i * 8 + j] - sum));
    }
  }
  // Rounded to 10 bits, no more and no less.
  CHECK(worst < 4e-3f);
  CHECK(worst > 1e-5f);
}

struct Output {
  float* values;
};

ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(kThreads, 1) exchange(ATTN_ARGUMENTS const Output out) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  const int thread = thread_index();
  const float x = static_cast<float>(thread);
  for (int round = 0; round < 8; ++round) {
    shared[thread] = x + 1000.0f * round;
    synchronise_block();
    const float other = shared[(thread + 37 * round) % kThreads];
    synchronise_block();
    out.values[thread] = other;
  }
  float* mine = out.values + kThreads + 6 * thread;
  mine[0] = shuffle(x, 31 - lane());
  mine[1] = shuffle_xor(x, 5);
  mine[2] = quad_maximum(lane() % 4 == 2 ? NAN : x);
  mine[3] = quad_sum(x);
  mine[4] = attn::cuda::any(thread == 70);
  mine[5] = exp2_approximate(static_cast<float>(thread) - 64.5f);
}

void test_exchange() {
  std::vector<float> out(7 * kThreads, NAN);
  launch(exchange, {}, kThreads, kThreads * sizeof(float), nullptr, Output{out.data()});
  for (int i = 0; i < kThreads; ++i) {
    const float first = static_cast<float>(i / 32 * 32), quad = static_cast<float>(i / 4 * 4);
    const float* mine = out.data() + kThreads + 6 * i;
    CHECK(out[i] == static_cast<float>((i + 37 * 7) % kThreads) + 7000.0f);
    CHECK(mine[0] == first + static_cast<float>(31 - i % 32));
    CHECK(mine[1] == static_cast<float>(i ^ 5));
    CHECK(mine[2] == quad + 3.0f);
    CHECK(mine[3] == 4.0f * quad + 6.0f);
    CHECK(mine[4] == (i / 32 == 70 / 32));
    const float exact = std::exp2(static_cast<float>(i) - 64.5f);
    CHECK(std::fabs(mine[5] - exact) <= 4e-7f * exact);
  }
}

struct Copied {
  const float* source;
  float* values;
};

// Two groups under way; what is not present becomes zeros; waits in order.
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(32, 1) copy_in_groups(ATTN_ARGUMENTS const Copied p) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  for (int group = 0; group < 2; ++group) {
    float* target = shared + (group * 32 + lane()) * 4;
    copy_async<16>(target, p.source + (group * 32 + lane()) * 4, lane() != 3);
    commit_copies();
  }
  wait_for_copies<1>();
  p.values[lane()] = shared[lane() * 4];
  wait_for_copies<0>();
  p.values[32 + lane()] = shared[(32 + lane()) * 4 + 3];
}

void test_copies() {
  alignas(16) float source[256];
  for (int i = 0; i < 256; ++i) source[i] = static_cast<float>(i + 1);
  std::vector<float> values(64, NAN);
  launch(copy_in_groups, {}, 32, sizeof(source), nullptr, Copied{source, values.data()});
  for (int i = 0; i < 32; ++i) {
    CHECK(values[i] == (i == 3 ? 0.0f : static_cast<float>(4 * i + 1)));
    CHECK(values[32 + i] == (i == 3 ? 0.0f : static_cast<float>(128 + 4 * i + 4)));
  }
}

struct Converted {
  float x, from_half, from_bfloat16;
  uint32_t half, bfloat16, pair;
};
struct ConvertedArguments {
  Converted* numbers;
};

ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(32, 1) convert(ATTN_ARGUMENTS const ConvertedArguments p) {
  Converted& c = p.numbers[thread_index()];
  const Half half = from_float<Half>(c.x);
  const BFloat16 bfloat16 = from_float<BFloat16>(c.x);
  c = {.x = c.x,
       .from_half = to_float(half),
       .from_bfloat16 = to_float(bfloat16),
       .half = half.bits,
       .bfloat16 = bfloat16.bits,
       .pair = pack<BFloat16>(c.x, -c.x)};
}

void test_conversions() {
  struct Expected {
    float x;
    uint32_t half, bfloat16;
  };
  const Expected cases[] = {
      {0.0f, 0, 0},
      {-2.5f, 0xC100, 0xC020},
      {1.00390625f, 0x3C04, 0x3F80},  // ties to even
      {1.01171875f, 0x3C0C, 0x3F82},  // and upwards
      {65519.0f, 0x7BFF, 0x4780},
      {65520.0f, 0x7C00, 0x4780},
      {-3e-5f, 0x81F7, 0xB7FC},
      {0x3p-25f, 0x0002, 0x33C0},
      {3e38f, 0x7C00, 0x7F62},
      {NAN, 0x7FFF, 0x7FFF},
  };
  std::vector<Converted> numbers(32);
  for (size_t i = 0; i < std::size(cases); ++i) numbers[i].x = cases[i].x;
  launch(convert, {}, 32, 0, nullptr, ConvertedArguments{numbers.data()});
  for (size_t i = 0; i < std::size(cases); ++i) {
    const Converted& c = numbers[i];
    CHECK(c.half == cases[i].half && c.half == gpu::to_half(c.x));
    CHECK(c.bfloat16 == cases[i].bfloat16 && c.bfloat16 == gpu::to_bfloat16(c.x));
    if (std::isnan(c.x)) {
      CHECK(std::isnan(c.from_half) && std::isnan(c.from_bfloat16));
      continue;
    }
    CHECK(c.from_half == gpu::from_half(static_cast<uint16_t>(c.half)));
    CHECK(c.from_bfloat16 == gpu::from_bfloat16(static_cast<uint16_t>(c.bfloat16)));
    CHECK(c.pair == (c.bfloat16 | (c.bfloat16 ^ 0x8000) << 16));
  }
}

// Each block appends a digit to a number: its ticket, in its turn.
struct TurnArguments {
  int32_t* tickets;
  int32_t* now;
  FourFloats* number;
};
ATTN_KERNEL void take_turns(ATTN_ARGUMENTS const TurnArguments p) {
  int& ticket = *reinterpret_cast<int*>(shared_memory());
  if (thread_index() == 0) ticket = take_ticket(p.tickets);
  synchronise_block();
  if (lane() == 0) wait_for_turn(p.now, ticket);
  synchronise_warp();
  FourFloats number = read_shared_by_blocks(p.number);
  for (float& x : number.values) x = 10.0f * x + static_cast<float>(ticket);
  synchronise_block();
  if (thread_index() == 0) *p.number = number;
  synchronise_block();
  if (thread_index() == 0) pass_turn(p.now, ticket);
}

void test_turns() {
  int32_t tickets = 0, now = 0;
  FourFloats number{};
  launch(take_turns, {.x = 6}, kThreads, kThreads, nullptr, TurnArguments{&tickets, &now, &number});
  CHECK(now == 6);
  for (const float x : number.values) CHECK(x == 12345.0f);
}

// A grid that a launch would cut to 32 bits is refused.
void test_grids() {
  const Grid grids[] = {{.x = int64_t{1} << 31}, {.y = 65536}, {.z = 65536}};
  for (const Grid& grid : grids) {
    bool is_refused = false;
    try {
      launch(exchange, grid, kThreads, kThreads * 16, nullptr, Output{nullptr});
    } catch (const attn::Refusal&) {
      is_refused = true;
    }
    CHECK(is_refused);
  }
}

}  // namespace

int main() {
  test_product<Half, false>("Half");
  test_product<Half, true>("Half, B transposed");
  test_product<BFloat16, false>("BFloat16");
  test_product<BFloat16, true>("BFloat16, B transposed");
  test_product_tf32();
  test_exchange();
  test_copies();
  test_conversions();
  test_turns();
  test_grids();
  return check::outcome();
}
