// Arguments that lie in one buffer without sharing an element are no fault.
#include <cstring>

#include "calls.h"
#include "check.h"

namespace {

// Views into one buffer whose elements take turns are apart.
void test_interleaved() {
  const Shape shape{.K = 6, .Kv = 6};
  Calls calls(Arrays(kFloat32, kFloat32, shape, 1));
  CHECK_IN(calls.error.message, calls.run_forward() == ATTN_OK);
  const GuardedBytes expected = calls.arrays.out.bytes();
  Array both(kFloat32, {shape.B, shape.Mq, shape.Hq, 12});
  int64_t place = 0;  // in query
  for (int64_t row = 0; row < both.size() / 12; ++row) {
    for (int64_t k = 0; k < 6; ++k) both.set(row * 12 + k, calls.arrays.query.get(place++));
  }
  for (EditableTensor* view : {&calls.query, &calls.out}) {
    for (int axis = 0; axis < 3; ++axis) view->strides[axis] *= 2;
  }
  calls.query.tensor.data = both.bytes().data();
  calls.out.tensor.data = both.bytes().data() + 6 * sizeof(float);
  CHECK_IN(calls.error.message, calls.run_forward() == ATTN_OK);
  bool is_same = true;
  for (int64_t row = 0; row < both.size() / 12; ++row) {
    is_same &= std::memcmp(both.bytes().data() + (row * 12 + 6) * sizeof(float),
                           expected.data() + row * 6 * sizeof(float), 6 * sizeof(float)) == 0;
  }
  CHECK(is_same);
}

}  // namespace

int main() {
  test_interleaved();
  return check::outcome();
}
