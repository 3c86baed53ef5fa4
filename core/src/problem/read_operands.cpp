// What every attention call brings: query, key and value, and the rows of its results.
#include "problem/read_operands.h"

#include <cmath>

#include "attn/attention.h"
#include "problem/refusal.h"

namespace attn {
namespace {

void check_heads_and_widths(const Problem& problem) {
  if (problem.K == 0) refuse_argument("expected query's width K >= 1, got 0; pass a wider query");
  if (problem.Kv == 0) refuse_argument("expected value's width Kv >= 1, got 0; pass a wider value");
  if (problem.Hkv == 0) refuse_argument("expected key's heads Hkv >= 1, got 0; pass a key head");
  if (problem.Hq % problem.Hkv != 0) {
    refuse_argument(
        "expected query's heads Hq to be a multiple of key's heads Hkv, got Hq=%lld, "
        "Hkv=%lld; repeat key and value or change Hkv",
        static_cast<long long>(problem.Hq), static_cast<long long>(problem.Hkv));
  }
  if (problem.G * problem.Mq >= int64_t{1} << 31) {
    refuse_argument("expected (Hq / Hkv) * Mq < 2^31, got %lld * %lld; split the queries",
                    static_cast<long long>(problem.G), static_cast<long long>(problem.Mq));
  }
}

}  // namespace

Axis free_axis(const char* letter) { return {.letter = letter, .extent = kAnyExtent}; }

Axis axis(const char* letter, int64_t extent, const char* owner) {
  return {.letter = letter, .extent = extent, .owner = owner};
}

Axis broadcast_axis(const char* letter, int64_t extent, const char* owner) {
  return {.letter = letter, .extent = extent, .owner = owner, .may_broadcast = true};
}

TensorSpec query_rows(const char* name, Access access, DTypes dtypes, const Problem& problem,
                      Axis width) {
  return {.name = name,
          .access = access,
          .dtypes = dtypes,
          .axes = {axis("B", problem.B, "query"), axis("Mq", problem.Mq, "query"),
                   axis("Hq", problem.Hq, "query"), width}};
}

TensorSpec key_rows(const char* name, Access access, const Problem& problem, Axis width) {
  return {.name = name,
          .access = access,
          .dtypes = only(problem.query.dtype),
          .axes = {axis("B", problem.B, "query"), axis("Mkv", problem.Mkv, "key"),
                   axis("Hkv", problem.Hkv, "key"), width}};
}

TensorSpec lse_rows(const char* name, Access access, const Problem& problem) {
  return {.name = name,
          .access = access,
          .dtypes = lse_dtypes(problem.query.dtype),
          .axes = {axis("B", problem.B, "query"),
                   axis("Hq", problem.Hq, "query"),
                   axis("Mq", problem.Mq, "query"),
                   {}}};
}

TensorSpec out_rows(const char* name, Access access, DTypes dtypes, const Problem& problem) {
  return query_rows(name, access, dtypes, problem, axis("Kv", problem.Kv, "value"));
}

DTypes out_dtypes(DType inputs) {
  return inputs == DType::kFloat64 ? only(DType::kFloat64) : kHalfOrSingle;
}

DTypes lse_dtypes(DType inputs) {
  return only(inputs == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32);
}

void read_operands(const attn_tensor* query, const attn_tensor* key, const attn_tensor* value,
                   TensorReader& reader, Problem& problem) {
  problem.query =
      reader.head_rows({.name = "query",
                        .access = Access::kRead,
                        .dtypes = kFloating,
                        .axes = {free_axis("B"), free_axis("Mq"), free_axis("Hq"), free_axis("K")}},
                       query);
  problem.B = query->shape[0];
  problem.Mq = query->shape[1];
  problem.Hq = query->shape[2];
  problem.K = query->shape[3];
  problem.Mkv = kAnyExtent;  // until key sets them
  problem.Hkv = kAnyExtent;
  const Axis key_width = axis("K", problem.K, "query");
  problem.key = reader.head_rows(key_rows("key", Access::kRead, problem, key_width), key);
  problem.Mkv = key->shape[1];
  problem.Hkv = key->shape[2];
  problem.value =
      reader.head_rows(key_rows("value", Access::kRead, problem, free_axis("Kv")), value);
  problem.Kv = value->shape[3];
  problem.G = problem.Hkv == 0 ? 0 : problem.Hq / problem.Hkv;
  check_heads_and_widths(problem);
}

double read_scale(double scale, int64_t K) {
  if (scale == ATTN_SCALE_DEFAULT) return 1.0 / std::sqrt(static_cast<double>(K));
  if (!std::isfinite(scale)) {
    refuse_argument("expected scale to be finite or ATTN_SCALE_DEFAULT, got %g; pass a number",
                    scale);
  }
  return scale;
}

}  // namespace attn
