// Each fault that the emulated GPU must find.
#include <cmath>
#include <vector>

#include "check.h"
#include "faulty_kernels.cuh"

namespace {

using namespace faulty;

void test_faults() {
  constexpr int kBlocks = 8;
  std::vector<float> values(kBlocks * kThreads);
  alignas(16) const float source[4] = {1, 2, 3, 4};
  const Output out{values.data()};
  const Copied copied{source, values.data()};
  const auto run = [&](auto kernel, const auto& arguments) {
    launch(kernel, {.x = kBlocks}, kThreads, kThreads * 16, nullptr, arguments);
  };
  run(no_barrier, out);
  int stale = 0;
  for (const float value : values) stale += std::isnan(value);
  CHECK(stale > 0);
  run(no_wait, copied);
  for (int i = 0; i < kThreads; ++i) CHECK(std::isnan(values[i]));
  CHECK(stops("at byte 512 of 512 bytes", [&] {
    launch(beyond_shared, {}, kThreads, kThreads * sizeof(float), nullptr, out);
  }));
  CHECK(stops("for threads that never come", [&] { run(lane_stays_away, out); }));
  CHECK(stops("different barriers", [&] { run(different_barriers, out); }));
  CHECK(stops("had not waited for", [&] { run(copy_left_behind, copied); }));
  CHECK(stops("another copy is under way", [&] { run(two_copies_to_one_place, copied); }));
  CHECK(stops("not a multiple of 16", [&] { run(misaligned_copy, copied); }));
  int32_t now = 0;
  CHECK(stops("waits for turn 1",
              [&] { run(turn_that_never_comes, TurnArguments{nullptr, &now, nullptr}); }));
}

}  // namespace

int main() {
  test_faults();
  return check::outcome();
}
