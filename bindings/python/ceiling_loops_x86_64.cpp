// The loops for x86-64, each function compiled for the instructions it is named after.
#include <attn/runtime.h>
#include <immintrin.h>

#include <cstring>

#include "ceiling_loops.h"

namespace attn::python {
namespace {

// Enough independent sums to hide the latency of two multiply-adds per cycle.
constexpr int kSums = 12;

// Read anew for each sum, so that the compiler cannot know two of them to be equal.
volatile float some_float = 0.999f;
volatile float sink;

int64_t multiply_sse2(int64_t rounds) {
  const __m128 factor = _mm_set1_ps(some_float);
  __m128 sums[kSums];
  for (__m128& sum : sums) sum = _mm_set1_ps(some_float);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) sums[i] = _mm_add_ps(_mm_mul_ps(sums[i], factor), factor);
  }
  for (__m128 sum : sums) sink = _mm_cvtss_f32(sum);
  return rounds * kSums * 4 * 2;
}

[[gnu::target("avx2,fma")]] int64_t multiply_avx2(int64_t rounds) {
  const __m256 factor = _mm256_set1_ps(some_float);
  __m256 sums[kSums];
  for (__m256& sum : sums) sum = _mm256_set1_ps(some_float);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) sums[i] = _mm256_fmadd_ps(sums[i], factor, factor);
  }
  for (__m256 sum : sums) sink = _mm256_cvtss_f32(sum);
  return rounds * kSums * 8 * 2;
}

[[gnu::target("avx512f")]] int64_t multiply_avx512(int64_t rounds) {
  const __m512 factor = _mm512_set1_ps(some_float);
  __m512 sums[kSums];
  for (__m512& sum : sums) sum = _mm512_set1_ps(some_float);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) sums[i] = _mm512_fmadd_ps(sums[i], factor, factor);
  }
  for (__m512 sum : sums) sink = _mm512_cvtss_f32(sum);
  return rounds * kSums * 16 * 2;
}

[[gnu::target("avx512f,avx512bf16")]] int64_t multiply_avx512_bfloat16(int64_t rounds) {
  const __m512bh factor = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3f00));  // 0.5
  __m512 sums[kSums];
  for (__m512& sum : sums) sum = _mm512_set1_ps(some_float);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], factor, factor);
  }
  for (__m512 sum : sums) sink = _mm512_cvtss_f32(sum);
  return rounds * kSums * 32 * 2;
}

[[gnu::target("amx-tile,amx-bf16")]] int64_t multiply_amx_bfloat16(int64_t rounds) {
  struct alignas(64) {
    uint8_t palette = 1;
    uint8_t unused[15] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
  } shapes;
  asm volatile("" ::"r"(&shapes) : "memory");  // the load's own operand is its first bytes alone
  _tile_loadconfig(&shapes);
  for (int64_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_release();
  return rounds * 4 * 16 * 16 * 32 * 2;
}

// 32 bytes a load keep a core's memory busy; wider ones read no faster.
[[gnu::target("avx2")]] int64_t read_avx2(const void* data, size_t bytes) {
  const auto* vectors = static_cast<const __m256i*>(data);
  __m256i sums[4] = {};
  for (size_t i = 0; i < bytes / sizeof(__m256i); i += 4) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      sums[j] = _mm256_or_si256(sums[j], _mm256_load_si256(vectors + i + j));
    }
  }
  const __m256i sum =
      _mm256_or_si256(_mm256_or_si256(sums[0], sums[1]), _mm256_or_si256(sums[2], sums[3]));
  return _mm256_extract_epi64(sum, 0) + _mm256_extract_epi64(sum, 3);
}

int64_t read_sse2(const void* data, size_t bytes) {
  const auto* vectors = static_cast<const __m128i*>(data);
  __m128i sums[4] = {};
  for (size_t i = 0; i < bytes / sizeof(__m128i); i += 4) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sums[j] = _mm_or_si128(sums[j], _mm_load_si128(vectors + i + j));
  }
  const __m128i sum = _mm_or_si128(_mm_or_si128(sums[0], sums[1]), _mm_or_si128(sums[2], sums[3]));
  return _mm_cvtsi128_si64(sum);
}

}  // namespace

CeilingLoops ceiling_loops() {
  CeilingLoops loops{
      .multiply_float32 = multiply_sse2, .multiply_bfloat16 = nullptr, .read = read_sse2};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    loops.multiply_float32 = multiply_avx2;
    loops.read = read_avx2;
  }
  if (__builtin_cpu_supports("avx512f")) loops.multiply_float32 = multiply_avx512;
  if (__builtin_cpu_supports("avx512bf16")) loops.multiply_bfloat16 = multiply_avx512_bfloat16;
  // Where these kernels run, this process may use the tile registers: the library has asked.
  if (std::strstr(attn_cpu_isas(), "amx_bf16")) loops.multiply_bfloat16 = multiply_amx_bfloat16;
  return loops;
}

}  // namespace attn::python
