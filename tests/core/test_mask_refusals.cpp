// Every way to break the contract of sequences, pages, blocks, positions and numbers per head: the
// status, the argument named, nothing written.
#include <cmath>
#include <cstring>

#include "calls.h"
#include "check.h"

namespace {

// What the masks start from, each with slopes, a table and a sink.
enum class Base { kPacked, kPadded, kPaged, kBlocks, kPositions };

Arrays arrays_of(Base base) {
  const Shape shape{.B = 1, .Mq = 5, .Mkv = 10};
  Arrays arrays(kFloat32, kFloat32, shape, 1);
  arrays.add_slopes(kFloat32, 2);
  arrays.add_table(kFloat32, 3, 3);
  arrays.add_sink(kFloat32, 4);
  if (base == Base::kPositions) {
    arrays.add_query_positions(kFloat32, 3, 7, 1, 5);
    arrays.add_key_positions(kFloat32, 6, 9, 4, 6);
    arrays.key_table_rows = Array::integers({6, 0, 3});
  } else if (base == Base::kBlocks) {
    arrays.offsets = Array::integers({0, 2, 2, 5}, 1);
    arrays.indices = Array::integers({0, 4, 1, 2, 3});
  } else {
    arrays.q_start = Array::integers({0, 2, 2, 5});
    arrays.k_start = Array::integers({0, 4, 4, 10});
  }
  if (base == Base::kPadded) arrays.k_len = Array::integers({4, 0, 6});
  if (base == Base::kPaged) {
    arrays.k_start = Array::integers({0, 0, 2});
    arrays.k_len = Array::integers({6, 0, 4});
    arrays.block_table = Array::integers({2, 0, -9, -9, 1, 1}, 3);
  }
  return arrays;
}

void fill_numbers(Base base, Calls& calls) {
  if (base == Base::kPaged) calls.mask.pages.page_size = 3;
  if (base == Base::kBlocks) calls.mask.blocks.block_size = 2;
}

struct Case {
  Base base;
  const char* expected;  // what the message must contain
  void (*spoil)(Calls& calls);
  bool queries_too = true;  // whether a workspace query, which reads no data, refuses as well
  attn_status status = ATTN_ERROR_INVALID_ARGUMENT;
};

// A fault in the numbers of an int32 array.
template <Array Arrays::* kArray, int kPlace, int kValue>
void set_integer(Calls& c) {
  (c.arrays.*kArray).set(kPlace, kValue);
}

constexpr Base kPacked = Base::kPacked, kPadded = Base::kPadded, kPaged = Base::kPaged,
               kBlocks = Base::kBlocks, kPositions = Base::kPositions;

const Case kCases[] = {
    // Sequences
    {kPacked, "sequences.q_start not to descend", set_integer<&Arrays::q_start, 1, 3>, false},
    {kPacked, "query's 5 rows, got sequences.q_start[3] = 6", set_integer<&Arrays::q_start, 3, 6>,
     false},
    {kPacked, "sequences.q_start[0] = -1", set_integer<&Arrays::q_start, 0, -1>, false},
    {kPacked, "sequences.k_start not to descend", set_integer<&Arrays::k_start, 1, 5>, false},
    {kPacked, "key's 10 rows, got sequences.k_start[3] = 11", set_integer<&Arrays::k_start, 3, 11>,
     false},
    {kPadded, "keys of sequence 2 within key's rows", set_integer<&Arrays::k_len, 2, 7>, false},
    {kPadded, "sequences.k_len >= 0, got -1 in sequence 0", set_integer<&Arrays::k_len, 0, -1>,
     false},
    {kPaged, "sequences.k_len >= 0, got -1 in sequence 2", set_integer<&Arrays::k_len, 2, -1>,
     false},
    {kPadded, "sequences.k_start >= 0, got -1 in sequence 1", set_integer<&Arrays::k_start, 1, -1>,
     false},
    {kPadded, "keys of sequence 1 within key's rows", set_integer<&Arrays::k_start, 1, 11>, false},
    {kPadded, "keys of sequence 0 within key's rows", set_integer<&Arrays::k_len, 0, INT32_MAX>,
     false},
    {kPacked, "within max_q_len and max_k_len, 2 queries",
     [](Calls& c) { c.mask.sequences.max_q_len = 2; }, false},
    {kPacked, "5 keys, got 3 and 6 in sequence 2", [](Calls& c) { c.mask.sequences.max_k_len = 5; },
     false},
    {kPacked, "sequences.max_q_len >= 0, got -1",
     [](Calls& c) { c.mask.sequences.max_q_len = -1; }},
    {kPacked, "sequences.max_k_len >= 0, got -1",
     [](Calls& c) { c.mask.sequences.max_k_len = -1; }},
    {kPacked, "sequences.q_start to have n + 1 entries, got 0",
     [](Calls& c) { c.q_start.shape[0] = 0; }},
    {kPacked, "sequences.k_start's extent n + 1 (axis 0) to be 4 as in sequences.q_start, got 3",
     [](Calls& c) { c.k_start.shape[0] = 3; }},
    {kPacked, "sequences.k_start to be a tensor", [](Calls& c) { c.mask.sequences.k_start = 0; }},
    {kPadded, "sequences.k_len's extent n (axis 0) to be 3",
     [](Calls& c) { c.k_len.shape[0] = 2; }},
    {kPadded, "sequences.k_start's extent n + 1 (axis 0) to be 3",
     [](Calls& c) { c.k_start.shape[0] = 2; }},
    {kPacked, "sequences.q_start to have 1 axes, got 2",
     [](Calls& c) { c.q_start.tensor.ndim = 2; }},
    {kPacked, "sequences.q_start's dtype to be int32, got float32",
     [](Calls& c) { c.q_start.tensor.dtype = kFloat32; }},
    {kPadded, "sequences.k_len's dtype to be int32, got int64",
     [](Calls& c) { c.k_len.tensor.dtype.bits = 64; }},
    {kPacked, "sequences.k_start on the device of query",
     [](Calls& c) { c.k_start.tensor.device_type = ATTN_DEVICE_CUDA; }},
    {kPacked, "sequences.q_start's last stride to be 1, got 2",
     [](Calls& c) { c.q_start.strides[0] = 2; }},
    {kPacked, "sequences.q_start's data", [](Calls& c) { c.q_start.tensor.data = nullptr; }, false},
    {kPacked, "query's B to be 1 with sequences, got 2",
     [](Calls& c) {
       for (EditableTensor* t : {&c.query, &c.key, &c.value, &c.out, &c.lse, &c.grad_out,
                                 &c.grad_lse, &c.grad_query, &c.grad_key, &c.grad_value}) {
         t->shape[0] = 2;
       }
     }},
    {kPacked, "q_start to be a tensor, got NULL; keys' ranges need sequences",
     [](Calls& c) { c.mask.sequences.q_start = nullptr; }},
    // Pages
    {kPaged, "pages.block_table[0, 0] to be one of key's 3 pages, got 3",
     set_integer<&Arrays::block_table, 0, 3>, false},
    {kPaged, "pages.block_table[2, 1] to be one of key's 3 pages, got -1",
     set_integer<&Arrays::block_table, 5, -1>, false},
    {kPaged, "keys of sequence 2 within its pages", set_integer<&Arrays::k_len, 2, 5>, false},
    {kPaged, "pages.page_size >= 1, got 0", [](Calls& c) { c.mask.pages.page_size = 0; }},
    {kPaged, "pages.page_size >= 1, got -3", [](Calls& c) { c.mask.pages.page_size = -3; }},
    {kPaged, "one of key's 0 pages", [](Calls& c) { c.mask.pages.page_size = INT64_MAX; }, false},
    {kPaged, "one of key's 1 pages, got 2", [](Calls& c) { c.mask.pages.page_size = 6; }, false},
    {kPaged, "k_len to be a tensor, got NULL; pages need it",
     [](Calls& c) {
       c.mask.sequences.k_len = nullptr;
       c.mask.sequences.k_start = c.mask.sequences.q_start;
     }},
    {kPaged, "pages.block_table's extent n (axis 0) to be 3",
     [](Calls& c) { c.block_table.shape[0] = 2; }},
    {kPaged, "pages.block_table to have 2 axes, got 1",
     [](Calls& c) { c.block_table.tensor.ndim = 1; }},
    {kPaged, "pages.block_table's dtype to be int32, got bool",
     [](Calls& c) { c.block_table.tensor.dtype = kBool; }},
    // Blocks
    {kBlocks, "blocks.indices to ascend below 5 within a list, got 0 after 0",
     set_integer<&Arrays::indices, 1, 0>, false},
    {kBlocks, "blocks.indices to ascend below 5 within a list, got 2 after 2",
     set_integer<&Arrays::indices, 2, 2>, false},
    {kBlocks, "blocks.indices to ascend below 5 within a list, got 5 after 2",
     set_integer<&Arrays::indices, 4, 5>, false},
    {kBlocks, "blocks.indices to ascend below 5 within a list, got -1 after -1",
     set_integer<&Arrays::indices, 0, -1>, false},
    {kBlocks, "blocks.offsets to ascend within the 5 indices, got 2 then 6",
     set_integer<&Arrays::offsets, 3, 6>, false},
    {kBlocks, "blocks.offsets to ascend within the 5 indices, got 2 then 1",
     set_integer<&Arrays::offsets, 2, 1>, false},
    {kBlocks, "blocks.offsets to ascend within the 5 indices, got -1 then 2",
     set_integer<&Arrays::offsets, 0, -1>, false},
    {kBlocks, "blocks.block_size >= 1, got 0", [](Calls& c) { c.mask.blocks.block_size = 0; }},
    {kBlocks, "blocks.offsets's extent query_blocks + 1 (axis 1) to be 2",
     [](Calls& c) { c.mask.blocks.block_size = 5; }},
    {kBlocks, "blocks.offsets's extent query_blocks + 1 (axis 1) to be 2",
     [](Calls& c) { c.mask.blocks.block_size = INT64_MAX; }},
    {kBlocks, "blocks.offsets's extent Hq (axis 0) to be 4 or 1",
     [](Calls& c) { c.offsets.shape[0] = 2; }},
    {kBlocks, "blocks.offsets's dtype to be int32",
     [](Calls& c) { c.offsets.tensor.dtype = kFloat32; }},
    {kBlocks, "blocks.indices to be a tensor", [](Calls& c) { c.mask.blocks.indices = nullptr; }},
    {kBlocks, "blocks.offsets to be a tensor, got NULL",
     [](Calls& c) { c.mask.blocks.offsets = nullptr; }},
    {kPacked, "expected blocks or sequences, got both",
     [](Calls& c) { c.mask.blocks = {c.mask.sequences.q_start, c.mask.sequences.k_start, 2}; },
     true, ATTN_ERROR_UNSUPPORTED},
    // Positions
    {kPositions, "positions.query's extent Mq (axis 1) to be 5 as in query, got 4",
     [](Calls& c) { c.position_query.shape[1] = 4; }},
    {kPositions, "positions.key's extent Mkv (axis 1) to be 10 as in key, got 9",
     [](Calls& c) { c.position_key.shape[1] = 9; }},
    {kPositions, "positions.key's extent Hq (axis 2) to be 4",
     [](Calls& c) { c.position_key.shape[2] = 2; }},
    {kPositions, "positions.query_table's extent Hq (axis 0) to be 4 or 1",
     [](Calls& c) { c.query_table.shape[0] = 2; }},
    {kPositions, "positions.key_table's extent width (axis 2) to be 3 as in positions.query, got 4",
     [](Calls& c) { c.key_table.shape[2] = 4; }},
    {kPositions, "positions.key_table's extents Z and width >= 1, got 0 and 3",
     [](Calls& c) { c.key_table.shape[1] = 0; }},
    {kPositions, "positions.key_table to have 3 axes, got 2",
     [](Calls& c) { c.key_table.tensor.ndim = 2; }},
    {kPositions, "positions.query_table's last stride to be 1, got 2",
     [](Calls& c) { c.query_table.strides[2] = 2; }},
    {kPositions, "positions.query's dtype to be float32, got bfloat16",
     [](Calls& c) { c.position_query.tensor.dtype = kBFloat16; }},
    {kPositions, "positions.key_table's data", [](Calls& c) { c.key_table.tensor.data = nullptr; },
     false},
    {kPositions, "positions.key_table to be a tensor, got NULL; pass it with positions.query",
     [](Calls& c) { c.mask.positions.key_table = nullptr; }},
    {kPositions, "positions.key to be a tensor where Hkv is not Hq, got NULL",
     [](Calls& c) { c.mask.positions.key = nullptr; }},
    {kPositions, "positions.key_table's extent width (axis 2) to be 8 as in query, got 3",
     [](Calls& c) { c.mask.positions.query = nullptr; }},
    {kPositions, "positions.key_table to be a tensor, got NULL; pass it with positions.key_table_r",
     [](Calls& c) { c.mask.positions.query = c.mask.positions.key_table = nullptr; }},
    {kPositions, "positions.key_table_rows within the 7 rows of positions.key_table, got 7 at [1]",
     set_integer<&Arrays::key_table_rows, 1, 7>, false},
    {kPositions, "positions.key_table_rows within the 7 rows of positions.key_table, got -1 at [2]",
     set_integer<&Arrays::key_table_rows, 2, -1>, false},
    {kPositions, "positions.key_table_rows's extent D >= 1, got 0",
     [](Calls& c) { c.key_table_rows.shape[0] = 0; }},
    {kPositions, "positions.key_table_rows's dtype to be int32, got int64",
     [](Calls& c) { c.key_table_rows.tensor.dtype.bits = 64; }},
    {kPositions, "expected positions or sequences, got both",
     [](Calls& c) {
       static Array starts = Array::integers({0, 5});
       c.mask.sequences.q_start = c.mask.sequences.k_start = starts.tensor();
       for (EditableTensor* t : {&c.query, &c.key, &c.value, &c.out, &c.lse, &c.grad_out,
                                 &c.grad_lse, &c.grad_query, &c.grad_key, &c.grad_value}) {
         t->shape[0] = 1;
       }
     },
     true, ATTN_ERROR_UNSUPPORTED},
    // Numbers per head
    {kPacked, "relative.slopes's extent Hq (axis 0) to be 4",
     [](Calls& c) { c.slopes.shape[0] = 3; }},
    {kPacked, "relative.slopes's dtype to be float32, got bfloat16",
     [](Calls& c) { c.slopes.tensor.dtype = kBFloat16; }},
    {kPacked, "relative.table to have 2 axes, got 1", [](Calls& c) { c.table.tensor.ndim = 1; }},
    {kPacked, "2 R + 1 (axis 1) to be odd, got 6", [](Calls& c) { c.table.shape[1] = 6; }},
    {kPacked, "2 R + 1 (axis 1) to be odd, got 0", [](Calls& c) { c.table.shape[1] = 0; }},
    {kPacked, "relative.table's dtype", [](Calls& c) { c.table.tensor.dtype = kFloat16; }},
    {kPacked, "sink's extent Hq (axis 0) to be 4", [](Calls& c) { c.sink.shape[0] = 1; }},
    {kPacked, "sink's dtype to be float32, got float64",
     [](Calls& c) { c.sink.tensor.dtype = kFloat64; }},
    {kPacked, "sink's data", [](Calls& c) { c.sink.tensor.data = nullptr; }, false},
    {kPacked, "mask's softcap", [](Calls& c) { c.mask.softcap = NAN; }},
    {kPacked, "mask's softcap", [](Calls& c) { c.mask.softcap = HUGE_VAL; }},
};

// Faults in the gradients alone.
const Case kBackwardCases[] = {
    {kPacked, "grad_slopes's extent Hq (axis 0) to be 4 as in relative.slopes, got 3",
     [](Calls& c) { c.grad_slopes.shape[0] = 3; }},
    {kPacked, "grad_table's extent 2 R + 1 (axis 1) to be 7 as in relative.table, got 5",
     [](Calls& c) { c.grad_table.shape[1] = 5; }},
    {kPacked, "grad_sink's dtype to be float32",
     [](Calls& c) { c.grad_sink.tensor.dtype = kFloat16; }},
    {kPacked, "grad_table's elements not to overlap",
     [](Calls& c) { c.grad_table.strides[0] = 0; }},
    {kPacked, "grad_slopes to be NULL, got a tensor; the mask has no relative.slopes",
     [](Calls& c) { c.mask.relative.slopes = nullptr; }},
    {kPacked, "grad_table to be NULL, got a tensor; the mask has no relative.table",
     [](Calls& c) { c.mask.relative.table = nullptr; }},
    {kPositions, "grad_position_query's extent width (axis 3) to be 3 as in positions, got 2",
     [](Calls& c) { c.grad_position_query.shape[3] = 2; }},
    {kPositions, "grad_query_table's extent H (axis 0) to be 4 as in positions, got 1",
     [](Calls& c) { c.grad_query_table.shape[0] = 1; }},
    {kPositions, "grad_key_table's dtype to be float32, got float64",
     [](Calls& c) { c.grad_key_table.tensor.dtype = kFloat64; }},
    {kPositions, "grad_position_key to be NULL, got a tensor; the mask has no positions.key",
     [](Calls& c) { c.mask.positions.key = c.mask.positions.query_table = nullptr; }},
    {kPositions, "grad_query_table's elements not to overlap",
     [](Calls& c) { c.grad_query_table.strides[0] = 0; }},
    {kPacked, "grad_sink apart from grad_slopes",
     [](Calls& c) { c.grad_sink.tensor.data = c.grad_slopes.tensor.data; }, false},
    {kPacked, "grad_sink apart from sink",
     [](Calls& c) { c.grad_sink.tensor.data = c.sink.tensor.data; }, false},
};

void check_refused(const Case& expected, attn_status status, const attn_error& error) {
  CHECK_IN(expected.expected, status == expected.status);
  CHECK_IN(error.message, std::strstr(error.message, expected.expected) != nullptr);
}

void run_case(const Case& expected, bool forward_too) {
  Calls calls(arrays_of(expected.base));
  fill_numbers(expected.base, calls);
  CHECK_IN(calls.error.message, calls.run_forward() == ATTN_OK);
  CHECK_IN(calls.error.message, calls.run_backward() == ATTN_OK);
  expected.spoil(calls);
  mark_unwritten(calls.backward_outputs());
  check_refused(expected, attn_attention_backward(&calls.backward, &calls.error), calls.error);
  CHECK_IN(expected.expected, is_unwritten(calls.backward_outputs()));
  size_t bytes = 0;
  if (expected.queries_too) {
    check_refused(expected,
                  attn_attention_backward_workspace(&calls.backward, &bytes, &calls.error),
                  calls.error);
  }
  if (!forward_too) return;
  mark_unwritten(calls.forward_outputs());
  check_refused(expected, attn_attention_forward(&calls.forward, &calls.error), calls.error);
  CHECK_IN(expected.expected, is_unwritten(calls.forward_outputs()));
  if (expected.queries_too) {
    check_refused(expected, attn_attention_forward_workspace(&calls.forward, &bytes, &calls.error),
                  calls.error);
  }
}

// What the contract allows though it looks odd.
void test_accepted() {
  const auto run = [](Base base, void (*edit)(Calls&)) {
    Calls calls(arrays_of(base));
    fill_numbers(base, calls);
    edit(calls);
    CHECK_IN(calls.error.message, calls.run_forward() == ATTN_OK);
    CHECK_IN(calls.error.message, calls.run_backward() == ATTN_OK);
    for (int64_t i = 0; i < calls.arrays.out.size(); ++i) {
      CHECK(std::isfinite(calls.arrays.out.get(i)));
    }
  };
  run(Base::kPaged, [](Calls& c) {  // no keys need no pages, whatever their size
    for (int64_t s = 0; s < 3; ++s) c.arrays.k_len.set(s, 0);
    c.mask.pages.page_size = INT64_MAX;
    size_t bytes = 0;  // for as many keys as such a page may hold, which need no memory here
    CHECK(attn_attention_backward_workspace(&c.backward, &bytes, &c.error) == ATTN_OK);
    c.mask.sequences.max_k_len = 1;
  });
  run(Base::kBlocks, [](Calls& c) {  // one block of everything
    c.mask.blocks.block_size = INT64_MAX;
    c.offsets.shape[1] = 2;
    c.arrays.offsets.set(1, 1);
  });
  run(Base::kPacked, [](Calls& c) { c.mask.softcap = 1e300; });
  run(Base::kPacked, [](Calls& c) { c.mask.softcap = 1e-300; });
  run(Base::kPadded, [](Calls& c) { c.mask.sequences = {}; });
  run(Base::kPositions, [](Calls& c) { c.mask.positions.zero_row = INT64_MIN; });
  run(Base::kPositions, [](Calls& c) { c.mask.positions.zero_row = INT64_MAX; });
}

}  // namespace

int main() {
  for (const Case& refused : kCases) run_case(refused, true);
  for (const Case& refused : kBackwardCases) run_case(refused, false);
  test_accepted();
  return check::outcome();
}
