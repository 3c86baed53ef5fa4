// The forward of float16 on compute capability 7.5, whose blocks have less shared memory than
// decoding takes: few queries and many, against the plain loops.
#include <string>

#include "calls.h"
#include "check.h"
#include "close.h"
#include "naive_attention.h"

int main() {
  for (const int64_t Mq : {1, 4, 70}) {
    const Shape shape{.B = 2, .Mq = Mq, .Mkv = 600, .Hq = 4, .Hkv = 2, .K = 64, .Kv = 48};
    Calls calls(Arrays(kFloat16, kFloat16, shape, 5));
    calls.mask.band = {ATTN_UNBOUNDED, 0, ATTN_ANCHOR_BOTTOM_RIGHT, 0};
    const std::string context = "Mq " + std::to_string(Mq);
    CHECK_IN(calls.error.message, calls.run_forward() == ATTN_OK);
    const NaiveForward expected = naive_forward(calls.arrays, calls.mask);
    check_close(context, "out", calls.arrays.out, expected.out, 4e-3);
    check_close(context, "lse", calls.arrays.lse, expected.lse, 4e-3);
  }
  return check::outcome();
}
