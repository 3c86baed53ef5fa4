// Thousands of calls with random damage: each either works or is refused with a message, and a
// refusal writes nothing. Most useful under sanitizers.
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "calls.h"
#include "chance.h"
#include "check.h"
#include "random_mask.h"

namespace {

attn_dtype any_dtype(Generator& generator) {
  constexpr attn_dtype kChoices[] = {
      kFloat32, kBFloat16, kFloat16, kFloat64, kBool, {ATTN_DTYPE_INT, 32, 1}, {200, 200, 60000}};
  return any_of(generator, kChoices);
}

// No damage may enlarge a tensor within what is valid: the call would rightly touch memory that is
// not there.
void damage_tensor(EditableTensor& t, Generator& generator) {
  constexpr int64_t kExtents[] = {-1, 0, INT64_MIN, INT64_MAX, int64_t{1} << 31};
  constexpr int64_t kStrides[] = {0, INT64_MIN, INT64_MAX, int64_t{1} << 60};
  switch (below(generator, 9)) {
    case 0: t.tensor.ndim = static_cast<int32_t>(below(generator, 7)) - 1; break;
    case 1: t.tensor.dtype = any_dtype(generator); break;
    case 2: t.tensor.device_type = static_cast<int32_t>(below(generator, 4)); break;
    case 3: t.tensor.data = nullptr; break;
    case 4: t.tensor.data = static_cast<char*>(t.tensor.data) + 1; break;
    case 5: t.tensor.shape = nullptr; break;
    case 6: t.tensor.strides = nullptr; break;
    case 7: t.shape[below(generator, 4)] = any_of(generator, kExtents); break;
    case 8: t.strides[below(generator, 4)] = any_of(generator, kStrides); break;
  }
}

void damage_options(Calls& c, Generator& generator) {
  constexpr double kNumbers[] = {0.0, 0.5, 1.0, -1.0, 1e300, NAN, HUGE_VAL, -HUGE_VAL};
  constexpr int64_t kSides[] = {0, 1, -3, 100, INT64_MIN, INT64_MAX};
  constexpr size_t kSizes[] = {0, 8, 80, 100, SIZE_MAX};
  constexpr int64_t kCounts[] = {-1, 0, 1, 2, 5, 64, int64_t{1} << 31, INT64_MAX};
  switch (below(generator, 14)) {
    case 0: c.mask.dropout.p = any_of(generator, kNumbers); break;
    case 1: c.forward.scale = c.backward.scale = any_of(generator, kNumbers); break;
    case 2: c.mask.band.left = any_of(generator, kSides); break;
    case 3: c.mask.band.right = any_of(generator, kSides); break;
    case 4: c.mask.band.anchor = static_cast<int32_t>(below(generator, 3)); break;
    case 5: c.mask.struct_size = any_of(generator, kSizes); break;
    case 6: c.forward.struct_size = c.backward.struct_size = any_of(generator, kSizes); break;
    case 7: c.exec.num_threads = static_cast<int32_t>(below(generator, 6)) - 1; break;
    case 8: c.mask.pages.page_size = any_of(generator, kCounts); break;
    case 9: c.mask.blocks.block_size = any_of(generator, kCounts); break;
    case 10: c.mask.sequences.max_q_len = any_of(generator, kCounts); break;
    case 11: c.mask.sequences.max_k_len = any_of(generator, kCounts); break;
    case 12: c.mask.softcap = any_of(generator, kNumbers); break;
    case 13: c.exec.reserved = static_cast<int32_t>(below(generator, 2)); break;
  }
}

// Starts, lengths, pages and indices that lead anywhere.
void damage_integers(Arrays& a, Generator& generator) {
  constexpr int64_t kNumbers[] = {-1, 0, 1, 2, 3, 7, 100, INT32_MIN, INT32_MAX};
  Array* const kArrays[] = {&a.q_start, &a.k_start, &a.k_len,          &a.block_table,
                            &a.offsets, &a.indices, &a.key_table_rows, &a.query_table_rows};
  Array& array = *any_of(generator, kArrays);
  if (array.size() == 0) return;
  array.set(below(generator, array.size()), static_cast<double>(any_of(generator, kNumbers)));
}

// Arguments swapped or left out.
void damage_pointers(Calls& c, Generator& generator) {
  const attn_tensor** const kPlaces[] = {&c.forward.query,
                                         &c.forward.key,
                                         &c.forward.value,
                                         &c.forward.out,
                                         &c.forward.lse,
                                         &c.backward.query,
                                         &c.backward.key,
                                         &c.backward.out,
                                         &c.backward.lse,
                                         &c.backward.grad_out,
                                         &c.backward.grad_lse,
                                         &c.backward.grad_query,
                                         &c.backward.grad_key,
                                         &c.backward.grad_bias,
                                         &c.backward.grad_slopes,
                                         &c.backward.grad_table,
                                         &c.backward.grad_sink,
                                         &c.mask.bias,
                                         &c.mask.sink,
                                         &c.mask.relative.slopes,
                                         &c.mask.relative.table,
                                         &c.mask.positions.query,
                                         &c.mask.positions.key_table,
                                         &c.mask.positions.key,
                                         &c.mask.positions.query_table,
                                         &c.mask.positions.key_table_rows,
                                         &c.mask.positions.query_table_rows,
                                         &c.backward.grad_position_query,
                                         &c.backward.grad_key_table,
                                         &c.backward.grad_position_key,
                                         &c.backward.grad_query_table,
                                         &c.mask.sequences.q_start,
                                         &c.mask.sequences.k_start,
                                         &c.mask.sequences.k_len,
                                         &c.mask.pages.block_table,
                                         &c.mask.blocks.offsets,
                                         &c.mask.blocks.indices};
  const attn_tensor** const place = any_of(generator, kPlaces);
  *place = one_in(generator, 2) ? nullptr : *any_of(generator, kPlaces);
}

void damage(Calls& c, Generator& generator) {
  EditableTensor* const kTensors[] = {&c.query,
                                      &c.key,
                                      &c.value,
                                      &c.bias,
                                      &c.out,
                                      &c.lse,
                                      &c.grad_out,
                                      &c.grad_lse,
                                      &c.grad_query,
                                      &c.grad_key,
                                      &c.grad_value,
                                      &c.grad_bias,
                                      &c.slopes,
                                      &c.table,
                                      &c.sink,
                                      &c.grad_slopes,
                                      &c.grad_table,
                                      &c.grad_sink,
                                      &c.q_start,
                                      &c.k_start,
                                      &c.k_len,
                                      &c.block_table,
                                      &c.offsets,
                                      &c.indices,
                                      &c.position_query,
                                      &c.key_table,
                                      &c.position_key,
                                      &c.query_table,
                                      &c.key_table_rows,
                                      &c.query_table_rows,
                                      &c.grad_position_query,
                                      &c.grad_key_table,
                                      &c.grad_position_key,
                                      &c.grad_query_table};
  switch (below(generator, 5)) {
    case 0: break;
    case 1: damage_tensor(*any_of(generator, kTensors), generator); break;
    case 2: damage_options(c, generator); break;
    case 3: damage_pointers(c, generator); break;
    case 4: damage_integers(c.arrays, generator); break;
  }
}

// Arrays of a small problem, and the mask's numbers.
Arrays any_arrays(attn_mask& mask, Generator& generator) {
  constexpr attn_dtype kDTypes[] = {kFloat32, kBFloat16, kFloat16, kFloat64};
  const attn_dtype dtype = any_of(generator, kDTypes);
  Shape s{.B = below(generator, 3), .Mq = below(generator, 6), .Mkv = below(generator, 20)};
  s.Hkv = 1 + below(generator, 2);
  s.Hq = s.Hkv * below(generator, 3);
  s.K = 1 + below(generator, 9);
  s.Kv = 1 + below(generator, 9);
  Arrays arrays(dtype, dtype, s, generator());
  mask = add_random_mask(arrays, s, dtype, generator);
  return arrays;
}

// A refusal that came from the call itself must have left every output as it was.
void check_outcome(attn_status status, const attn_error& error,
                   const std::vector<Array*>& outputs) {
  const bool is_expected = status == ATTN_OK || status == ATTN_ERROR_INVALID_ARGUMENT ||
                           status == ATTN_ERROR_UNSUPPORTED;
  CHECK_IN(error.message, is_expected);
  if (status == ATTN_OK) return;
  CHECK_IN(error.message, std::strstr(error.message, "attn_attention_") == error.message);
  CHECK_IN(error.message, is_unwritten(outputs));
}

struct Counts {
  int accepted = 0, refused = 0;
  void add(attn_status status) { ++(status == ATTN_OK ? accepted : refused); }
};

void run_round(Generator& generator, Counts& counts) {
  attn_mask mask;
  Calls calls(any_arrays(mask, generator));
  calls.mask = mask;
  calls.fill_mask();
  calls.run_forward();
  for (int64_t blows = below(generator, 3); blows > 0; --blows) damage(calls, generator);

  mark_unwritten(calls.forward_outputs());
  attn_status status = calls.run_forward();
  check_outcome(status, calls.error, calls.forward_outputs());
  counts.add(status);

  for (Array* array : calls.forward_outputs()) {  // the backward reads them
    for (int64_t i = 0; i < array->size(); ++i) array->set(i, 0.25);
  }
  mark_unwritten(calls.backward_outputs());
  status = calls.run_backward();
  check_outcome(status, calls.error, calls.backward_outputs());
  counts.add(status);
}

}  // namespace

// The first argument is the number of rounds, the second the seed.
int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 4000;
  const unsigned seed = argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 1;
  Generator generator(seed);
  Counts counts;
  for (int round = 0; round < rounds; ++round) run_round(generator, counts);
  std::printf("seed %u: %d calls accepted, %d refused\n", seed, counts.accepted, counts.refused);
  CHECK(counts.accepted > rounds / 4 && counts.refused > rounds / 4);
  return check::outcome();
}
