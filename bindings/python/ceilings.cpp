// What this machine can do at most: every thread runs one loop for a while, and the work is summed.
#include "ceilings.h"

#include <nanobind/stl/optional.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "ceiling_loops.h"

namespace attn::python {
namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kRounds = 100'000;  // of a multiply loop between two looks at the clock
constexpr int kMostThreads = 1024;    // that a call of the library uses, too
constexpr size_t kMebibyte = 1024 * 1024;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Runs step(thread) on each thread for `seconds`, after one unmeasured prepare(thread). A step
// returns the work it did; the work per second of all threads together is returned.
template <class Prepare, class Step>
double rate(int num_threads, double seconds, Prepare prepare, Step step) {
  std::atomic<int> preparing{num_threads};
  std::atomic<bool> gave_up{false};
  std::vector<double> rates(static_cast<size_t>(num_threads));
  auto run = [&](int thread) {
    prepare(thread);
    preparing.fetch_sub(1);
    while (preparing.load() > 0 && !gave_up.load()) std::this_thread::yield();
    if (gave_up.load()) return;
    const Clock::time_point begin = Clock::now();
    int64_t work = 0;
    while (seconds_since(begin) < seconds) work += step(thread);
    rates[static_cast<size_t>(thread)] = static_cast<double>(work) / seconds_since(begin);
  };
  std::vector<std::jthread> others;  // joined where they go out of scope, whatever the way
  try {
    for (int thread = 1; thread < num_threads; ++thread) others.emplace_back(run, thread);
  } catch (const std::exception& error) {
    gave_up = true;
    throw std::runtime_error("ceiling: expected " + std::to_string(num_threads) +
                             " threads to start, got \"" + error.what() + "\"; ask for fewer");
  }
  run(0);
  others.clear();
  return std::accumulate(rates.begin(), rates.end(), 0.0);
}

double multiply_rate(int num_threads, double seconds, int64_t (*multiply)(int64_t)) {
  auto step = [=](int) { return multiply(kRounds); };
  return rate(num_threads, seconds, step, step);
}

void check(int num_threads, double seconds) {
  if (num_threads < 1 || num_threads > kMostThreads) {
    throw nb::value_error(("ceiling: expected num_threads in [1, " + std::to_string(kMostThreads) +
                           "], got " + std::to_string(num_threads) +
                           "; pass the number of CPUs to measure")
                              .c_str());
  }
  if (seconds > 0.0) return;
  throw nb::value_error(("ceiling: expected seconds > 0, got " + std::to_string(seconds) +
                         "; pass the time to measure for")
                            .c_str());
}

double float32_ceiling(int num_threads, double seconds) {
  check(num_threads, seconds);
  nb::gil_scoped_release without_gil;
  return multiply_rate(num_threads, seconds, ceiling_loops().multiply_float32);
}

std::optional<double> bfloat16_ceiling(int num_threads, double seconds) {
  check(num_threads, seconds);
  const auto multiply = ceiling_loops().multiply_bfloat16;
  if (!multiply) return std::nullopt;
  nb::gil_scoped_release without_gil;
  return multiply_rate(num_threads, seconds, multiply);
}

struct Line {
  alignas(64) char bytes[64];
};

double read_ceiling(int num_threads, double seconds) {
  check(num_threads, seconds);
  nb::gil_scoped_release without_gil;
  const auto threads = static_cast<size_t>(num_threads);
  const size_t bytes = std::max(256 / threads, size_t{32}) * kMebibyte;  // beyond every cache
  std::vector<std::unique_ptr<Line[]>> data(threads);
  for (auto& part : data) part.reset(new Line[bytes / sizeof(Line)]);
  const auto read = ceiling_loops().read;
  std::atomic<int64_t> sink{0};
  auto part = [&](int thread) { return data[static_cast<size_t>(thread)].get(); };
  // The thread that reads memory also touches it first, so that it lies near.
  auto touch = [&](int thread) { std::memset(part(thread), 1, bytes); };
  return rate(num_threads, seconds, touch, [&](int thread) {
    sink += read(part(thread), bytes);
    return static_cast<int64_t>(bytes);
  });
}

}  // namespace

void bind_ceilings(nb::module_& module) {
  module.def(
      "float32_ceiling", &float32_ceiling, "num_threads"_a, "seconds"_a,
      "Return the float32 multiply-adds that `num_threads` threads reach, in FLOP/s.\n\n"
      "Raises: ValueError if num_threads is not in [1, 1024] or seconds not above 0, RuntimeError\n"
      "if the system refuses so many threads.");
  module.def("bfloat16_ceiling", &bfloat16_ceiling, "num_threads"_a, "seconds"_a,
             "Return the same of bfloat16 dot products, or None where the CPU has none.");
  module.def("read_ceiling", &read_ceiling, "num_threads"_a, "seconds"_a,
             "Return the bytes per second that `num_threads` threads read from memory.\n\n"
             "Together they read at least 256 MiB, each a part of its own.");
}

}  // namespace attn::python
