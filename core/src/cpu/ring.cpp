// Plain loops over streams and slots, the same for every instruction set: attention takes longer.
#include "cpu/ring.h"

#include <cstring>
#include <limits>

namespace attn::cpu {
namespace {

void copy(const StepRows& to, const StepRows& from, int64_t b, int64_t heads, int64_t width) {
  const size_t bytes = static_cast<size_t>(width * element_bytes(to.rows.dtype));
  for (int64_t h = 0; h < heads; ++h) std::memcpy(to.row(b, h), from.row(b, h), bytes);
}

bool has_padding(const StepProblem& problem, int64_t b) {
  if (!problem.padding_ring) return false;
  const int64_t slots = problem.attention.Mkv, stride = problem.padding_ring.stride_r;
  const Flag* flags = &problem.padding_ring.at<Flag>(b);
  Flag any = 0;
  if (stride == 1) {  // the compiler's vectors need to know
    for (int64_t slot = 0; slot < slots; ++slot) any |= flags[slot];
  } else {
    for (int64_t slot = 0; slot < slots; ++slot) any |= flags[slot * stride];
  }
  return any != 0;
}

// Calls visit(slot, place, is_seen) for every slot, with its place in the window: 0 for the oldest,
// negative beyond it.
template <class F>
void each_slot(const StepProblem& problem, int64_t b, F visit) {
  const StreamWindow window(problem, b, problem.position.at<int64_t>(b));
  for (int64_t slot = 0; slot < window.slots; ++slot) {
    const int64_t age = window.age(slot);
    visit(slot, problem.window - 1 - age, age < window.seen && !problem.is_padding(b, slot));
  }
}

void write_seen(const StepProblem& problem, Flag* to) {
  for (int64_t b = 0; b < problem.attention.B; ++b, to += problem.attention.Mkv) {
    each_slot(problem, b, [&](int64_t slot, int64_t, bool is_seen) { to[slot] = is_seen; });
  }
}

// Moves the bias to the slots of its keys. Only the bits of its elements matter.
template <class Bits>
void scatter_bias(const StepProblem& problem, Bits excluded, char* memory) {
  const Scores& bias = problem.bias;
  Bits* to = reinterpret_cast<Bits*>(memory);
  for (int64_t b = 0; b < problem.attention.B; ++b) {
    for (int64_t h = 0; h < problem.bias_heads; ++h, to += problem.attention.Mkv) {
      const Bits* from = reinterpret_cast<const Bits*>(bias.row(b, h, 0));
      each_slot(problem, b, [&](int64_t slot, int64_t place, bool is_seen) {
        to[slot] = is_seen ? from[place * bias.stride_n] : excluded;
      });
    }
  }
}

}  // namespace

void exchange(const HeadRows& attending_query, const StepProblem& problem) {
  const ForwardProblem& attention = problem.attention;
  for (int64_t b = 0; b < attention.B; ++b) {
    const StepRows oldest{problem.query_ring, problem.position.at<int64_t>(b) % problem.delay};
    copy({attending_query}, oldest, b, attention.Hq, attention.K);
    if (problem.is_active(b)) copy(oldest, {problem.query}, b, attention.Hq, attention.K);
  }
}

void append(const StepProblem& problem) {
  const ForwardProblem& attention = problem.attention;
  for (int64_t b = 0; b < attention.B; ++b) {
    if (!problem.is_active(b)) continue;
    int64_t& position = problem.position.at<int64_t>(b);
    const int64_t slot = position % attention.Mkv;
    copy({attention.key, slot}, {problem.key}, b, attention.Hkv, attention.K);
    copy({attention.value, slot}, {problem.value}, b, attention.Hkv, attention.Kv);
    if (problem.padding_ring) {
      const bool is_hidden = problem.padding && problem.padding.at<Flag>(b);
      problem.padding_ring.at<Flag>(b, slot) = is_hidden;
    }
    ++position;
  }
}

bool sees_every_slot(const StepProblem& problem) {
  const int64_t slots = problem.attention.Mkv;
  if (problem.bias || problem.window < slots) return false;
  for (int64_t b = 0; b < problem.attention.B; ++b) {
    if (!problem.is_active(b) || problem.position.at<int64_t>(b) < slots) return false;
    if (has_padding(problem, b)) return false;
  }
  return true;
}

size_t slot_bias_bytes(const StepProblem& problem) {
  const Scores bias = problem.slot_bias(nullptr);
  return static_cast<size_t>(problem.attention.B * bias.stride_b * element_bytes(bias.dtype));
}

void fill(const Scores& slot_bias, const StepProblem& problem) {
  char* to = slot_bias.data;
  if (!problem.bias) return write_seen(problem, reinterpret_cast<Flag*>(to));
  switch (slot_bias.dtype) {
    case DType::kFloat64:
      return scatter_bias(problem, -std::numeric_limits<double>::infinity(), to);
    case DType::kFloat32: return scatter_bias(problem, -std::numeric_limits<float>::infinity(), to);
    case DType::kBFloat16: return scatter_bias(problem, uint16_t{0xFF80}, to);  // -infinity
    case DType::kFloat16: return scatter_bias(problem, uint16_t{0xFC00}, to);
    default: return scatter_bias(problem, Flag{0}, to);
  }
}

}  // namespace attn::cpu
