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
  const char* table_rows_name;
  const attn_tensor* table_rows;
  Axis rows;                // of the features
  const HeadRows& content;  // what the features are by default
  int64_t content_heads;
};

DTypes dtypes_of(const Problem& problem) {
  const DTypes own = only(problem.query.dtype);
  return own == only(DType::kFloat64) ? own : own | only(DType::kFloat32);
}

// Reads the features, or makes them the query or the key.
void read_features(const Side& side, TensorReader& reader, const Problem& problem,
                   PositionTerm& term) {
  if (side.features) {
    term.features =
        reader.head_rows({.name = side.features_name,
                          .access = Access::kRead,
                          .dtypes = dtypes_of(problem),
                          .axes = {axis("B", problem.B, "query"), side.rows,
                                   axis("Hq", problem.Hq, "query"), free_axis("width")}},
                         side.features);
    term.width = side.features->shape[3];
    return;
  }
  if (side.content_heads != problem.Hq) {
    refuse_argument("expected %s to be a tensor where Hkv is not Hq, got NULL", side.features_name);
  }
  term.features = side.content;
  term.is_content = true;
  term.width = problem.K;
}

// Reads which row of the table each distance has, once the table is read.
void read_table_rows(const Side& side, TensorReader& reader, PositionTerm& term) {
  term.num_distances = term.num_table_rows;
  if (!side.table_rows) return;
  term.table_row_of = reader
                          .integers({.name = side.table_rows_name,
                                     .access = Access::kRead,
                                     .dtypes = only(DType::kInt32),
                                     .axes = {free_axis("D"), {}, {}, {}}},
                                    1, side.table_rows)
                          .data;
  term.num_distances = side.table_rows->shape[0];
  if (term.num_distances == 0) {
    refuse_argument("expected %s's extent D >= 1, got 0; leave it out", side.table_rows_name);
  }
  for (int64_t r = 0; reader.reads_data() && r < term.num_distances; ++r) {
    if (term.table_row_of[r] >= 0 && term.table_row_of[r] < term.num_table_rows) continue;
    refuse_argument("expected %s within the %lld rows of %s, got %d at [%lld]",
                    side.table_rows_name, static_cast<long long>(term.num_table_rows),
                    side.table_name, term.table_row_of[r], static_cast<long long>(r));
  }
}

PositionTerm read_term(const Side& side, TensorReader& reader, const Problem& problem) {
  if (!side.table) {
    const char* beside = side.features ? side.features_name : side.table_rows_name;
    if (!side.features && !side.table_rows) return {};
    refuse_argument("expected %s to be a tensor, got NULL; pass it with %s, or neither",
                    side.table_name, beside);
  }
  PositionTerm term;
  read_features(side, reader, problem, term);
  term.table = reader.table_rows(
      {.name = side.table_name,
       .access = Access::kRead,
       .dtypes = dtypes_of(problem),
       .axes = {broadcast_axis("Hq", problem.Hq, "query"),
                free_axis("Z"),
                axis("width", term.width, term.is_content ? "query" : side.features_name),
                {}}},
      side.table);
  term.num_table_rows = side.table->shape[1];
  if (term.width == 0 || term.num_table_rows == 0) {
    refuse_argument("expected %s's extents Z and width >= 1, got %lld and %lld; leave it out",
                    side.table_name, static_cast<long long>(term.num_table_rows),
                    static_cast<long long>(term.width));
  }
  read_table_rows(side, reader, term);
  return term;
}

// `of` is the name of the features.
HeadRows read_grad_features(const char* name, const attn_tensor* gradient, const char* of,
                            const attn_tensor* features, const PositionTerm& term,
                            TensorReader& reader) {
  if (!gradient) return {};
  if (!features) {
    refuse_argument("expected %s to be NULL, got a tensor; the mask has no %s", name, of);
  }
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
                                    .table_rows_name = "positions.key_table_rows",
                                    .table_rows = given.key_table_rows,
                                    .rows = axis("Mq", problem.Mq, "query"),
                                    .content = problem.query,
                                    .content_heads = problem.Hq},
                                   reader, problem);
  positions.of_keys = read_term({.features_name = "positions.key",
                                 .features = given.key,
                                 .table_name = "positions.query_table",
                                 .table = given.query_table,
                                 .table_rows_name = "positions.query_table_rows",
                                 .table_rows = given.query_table_rows,
                                 .rows = axis("Mkv", problem.Mkv, "key"),
                                 .content = problem.key,
                                 .content_heads = problem.Hkv},
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
  problem.grad_position_query =
      read_grad_features("grad_position_query", args.grad_position_query, "positions.query",
                         positions.query, of_queries, reader);
  problem.grad_key_table = read_grad_table("grad_key_table", args.grad_key_table,
                                           positions.key_table, of_queries, reader);
  problem.grad_position_key = read_grad_features("grad_position_key", args.grad_position_key,
                                                 "positions.key", positions.key, of_keys, reader);
  problem.grad_query_table = read_grad_table("grad_query_table", args.grad_query_table,
                                             positions.query_table, of_keys, reader);
}

}  // namespace attn
