// Each fault that the PTX machine must find.
#include <vector>

#include "check.h"
#include "faulty_kernels.cuh"

namespace {

using namespace faulty;

void test_faults() {
  constexpr int kBlocks = 8;
  std::vector<float> values(kBlocks * kThreads);
  alignas(16) const float source[8] = {1, 2, 3, 4};
  const Output out{values.data()};
  const Copied copied{source, values.data()};
  const auto run = [&](auto kernel, const auto& arguments) {
    launch(kernel, {.x = kBlocks}, kThreads, kThreads * 16, nullptr, arguments);
  };
  CHECK(stops("of shared memory", [&] { run(no_barrier, out); }));
  CHECK(stops("reads byte", [&] { run(no_warp_barrier, out); }));
  CHECK(stops("which is being copied", [&] { run(no_wait, copied); }));
  CHECK(stops("a write of bytes 512 to 516 of 512", [&] {
    launch(beyond_shared, {}, kThreads, kThreads * sizeof(float), nullptr, out);
  }));
  CHECK(stops("for others that never come", [&] { run(lane_stays_away, out); }));
  CHECK(stops("while its copies are under way", [&] { run(copy_left_behind, copied); }));
  CHECK(stops("which is being copied", [&] { run(two_copies_to_one_place, copied); }));
  CHECK(stops("which is no multiple", [&] { run(misaligned_copy, copied); }));
  CHECK(stops("which is no multiple", [&] { run(no_wait, Copied{source + 1, values.data()}); }));
  CHECK(stops("memory that is not there", [&] { run(blocks_share_a_place, Output{nullptr}); }));
  CHECK(stops("overwrites the byte", [&] { run(blocks_share_a_place, out); }));
  int32_t tickets = 0, now = 0;
  const TurnArguments turns{&tickets, &now, values.data()};
  CHECK(stops("reads the byte", [&] { run(turn_passed_too_soon, turns); }));
  now = kBlocks + 1;
  CHECK(stops("all blocks sleep", [&] { run(turn_that_never_comes, turns); }));
}

}  // namespace

int main() {
  test_faults();
  return check::outcome();
}
