// The rules of attn_positions and of the gradients of its tensors.
#include "problem/read_positions.h"

#include <algorithm>

#include "problem/read_operands.h"
#include "problem/refusal.h"

namespace attn {
namespace {

// Beyond the distance of any two rows, and small enough to add without overflow.
constexpr int64_t kFarthestZeroRow = int64_t{1} << 40;

// One side of attn_positions, with what its tensors are called.
struct Side {
  const char* features_name;
  const attn_tensor* features;
  const char* table_name;
  const attn_tensor* table;
  Axis rows;  // of the features
};

DTypes dtypes_of(const Problem& problem) {
  const DTypes own = only(problem.query.dtype);
  return own == only(DType::kFloat64) ? own : own | only(DType::kFloat32);
}

PositionTerm read_term(const Side& side, TensorReader& reader, const Problem& problem) {
  if (!side.features && !side.table) return {};
  if (!side.features || !side.table) {
    refuse_argument("expected %s to be a tensor, got NULL; pass it with %s, or neither",
                    side.features ? side.table_name : side.features_name,
                    side.features ? side.features_name : side.table_name);
  }
  PositionTerm term;
  term.features = reader.head_rows({.name = side.features_name,
                                    .access = Access::kRead,
                                    .dtypes = dtypes_of(problem),
                                    .axes = {axis("B", problem.B, "query"), side.rows,
                                             axis("Hq", problem.Hq, "query"), free_axis("width")}},
                                   side.features);
  term.width = side.features->shape[3];
  Axis heads = axis("Hq", problem.Hq, "query");
  heads.may_broadcast = true;
  term.table = reader.table_rows(
      {.name = side.table_name,
       .access = Access::kRead,
       .dtypes = dtypes_of(problem),
       .axes = {heads, free_axis("Z"), axis("width", term.width, side.features_name), {}}},
      side.table);
  term.rows = side.table->shape[1];
  if (term.width == 0 || term.rows == 0) {
    refuse_argument("expected %s's extents Z and width >= 1, got %lld and %lld; leave it out",
                    side.table_name, static_cast<long long>(term.rows),
                    static_cast<long long>(term.width));
  }
  return term;
}

HeadRows read_grad_features(const char* name, const attn_tensor* gradient,
                            const attn_tensor* features, const PositionTerm& term,
                            TensorReader& reader) {
  if (!gradient) return {};
  if (!features) refuse_argument("expected %s to be NULL, got a tensor; no positions", name);
  const int64_t* shape = features->shape;
  return reader.head_rows(
      {.name = name,
       .access = Access::kWritten,
       .dtypes = only(term.features.dtype),
       .axes = {axis("B", shape[0], "positions"), axis("M", shape[1], "positions"),
                axis("Hq", shape[2], "positions"), axis("width", shape[3], "positions")}},
      gradient);
}

HeadRows read_grad_table(const char* name, const attn_tensor* gradient, const attn_tensor* table,
                         const PositionTerm& term, TensorReader& reader) {
  if (!gradient) return {};
  if (!table) refuse_argument("expected %s to be NULL, got a tensor; no positions", name);
  const int64_t* shape = table->shape;
  const HeadRows rows = reader.table_rows({.name = name,
                                           .access = Access::kWritten,
                                           .dtypes = only(term.table.dtype),
                                           .axes = {axis("H", shape[0], "positions"),
                                                    axis("Z", shape[1], "positions"),
                                                    axis("width", shape[2], "positions"),
                                                    {}}},
                                          gradient);
  return shape[0] == 0 ? HeadRows{} : rows;  // of no heads there is nothing to write
}

}  // namespace

Positions read_positions(const attn_positions& given, TensorReader& reader,
                         const Problem& problem) {
  Positions positions;
  positions.of_queries = read_term({.features_name = "positions.query",
                                    .features = given.query,
                                    .table_name = "positions.key_table",
                                    .table = given.key_table,
                                    .rows = axis("Mq", problem.Mq, "query")},
                                   reader, problem);
  positions.of_keys = read_term({.features_name = "positions.key",
                                 .features = given.key,
                                 .table_name = "positions.query_table",
                                 .table = given.query_table,
                                 .rows = axis("Mkv", problem.Mkv, "key")},
                                reader, problem);
  if (positions && problem.sequences) {
    refuse_unsupported(
        "expected positions or sequences, got both; no kernel combines them, call once per "
        "sequence");
  }
  positions.zero_row = std::clamp(given.zero_row, -kFarthestZeroRow, kFarthestZeroRow);
  return positions;
}

void read_grad_positions(const attn_attention_backward_args& args, const attn_positions& positions,
                         TensorReader& reader, BackwardProblem& problem) {
  const PositionTerm &of_queries = problem.positions.of_queries,
                     &of_keys = problem.positions.of_keys;
  problem.grad_position_query = read_grad_features("grad_position_query", args.grad_position_query,
                                                   positions.query, of_queries, reader);
  problem.grad_key_table = read_grad_table("grad_key_table", args.grad_key_table,
                                           positions.key_table, of_queries, reader);
  problem.grad_position_key = read_grad_features("grad_position_key", args.grad_position_key,
                                                 positions.key, of_keys, reader);
  problem.grad_query_table = read_grad_table("grad_query_table", args.grad_query_table,
                                             positions.query_table, of_keys, reader);
}

}  // namespace attn
