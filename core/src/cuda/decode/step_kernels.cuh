// Appends a step to ring buffers, and finds which query attends and which of their slots it sees.
#pragma once

#include "cuda/device/score_terms.cuh"
#include "problem/step_problem.h"

namespace attn::cuda::decode {

constexpr int kStepThreads = 128;

struct StepArguments {
  StepProblem problem;
  HeadRows attending_query;  // in the workspace or the caller's, where queries wait
  Scores slot_bias;          // in the workspace
};

// Steps that a stream has seen. Nobody has checked the number.
ATTN_DEVICE int64_t position_of(const StepProblem& p, int64_t b) {
  const int64_t position = p.position.at<int64_t>(b);
  return position < 0 ? 0 : position;
}

template <class Bits>
ATTN_DEVICE void copy_number(char* to, const char* from) {
  *reinterpret_cast<Bits*>(to) = *reinterpret_cast<const Bits*>(from);
}

// An element of so many bytes.
ATTN_DEVICE void copy_element(char* to, const char* from, int64_t bytes) {
  switch (bytes) {
    case 1: return copy_number<uint8_t>(to, from);
    case 2: return copy_number<uint16_t>(to, from);
    default: return copy_number<uint32_t>(to, from);
  }
}

// Copies the row of each head of stream b, by all threads of a block. One place is always the same
// thread's.
template <int kThreads>
ATTN_DEVICE void copy_rows(const StepRows& to, const StepRows& from, int64_t b, int64_t heads,
                           int64_t width) {
  const int64_t bytes = element_bytes(to.rows.dtype);
  for (int64_t at = thread_index(); at < heads * width; at += kThreads) {
    const int64_t h = at / width, column = at % width;
    copy_element(to.row(b, h) + column * bytes, from.row(b, h) + column * bytes, bytes);
  }
}

// Copies the query that has waited to where it attends from, and lets this step's wait in its slot
// if the stream is active.
template <int kThreads>
ATTN_DEVICE void exchange_query(const StepArguments& arguments, int64_t b, int64_t position) {
  const StepProblem& p = arguments.problem;
  const StepRows oldest{p.query_ring, position % p.delay};
  copy_rows<kThreads>({arguments.attending_query}, oldest, b, p.attention.Hq, p.attention.K);
  if (p.is_active(b)) copy_rows<kThreads>(oldest, {p.query}, b, p.attention.Hq, p.attention.K);
}

// A block of threads for each stream.
template <int kThreads>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(kThreads, 1)
    append_kernel(ATTN_ARGUMENTS const StepArguments arguments) {
  const StepProblem& p = arguments.problem;
  const ForwardProblem& attention = p.attention;
  const int64_t b = block_index().x, position = position_of(p, b), slot = position % attention.Mkv;
  if (p.query_ring) exchange_query<kThreads>(arguments, b, position);
  if (!p.is_active(b)) return;
  copy_rows<kThreads>({attention.key, slot}, {p.key}, b, attention.Hkv, attention.K);
  copy_rows<kThreads>({attention.value, slot}, {p.value}, b, attention.Hkv, attention.Kv);
  synchronise_block();  // every thread has read the position
  if (thread_index() != 0) return;
  if (p.padding_ring) {
    const bool is_hidden = p.padding && p.padding.at<Flag>(b);
    p.padding_ring.at<Flag>(b, slot) = is_hidden;
  }
  p.position.at<int64_t>(b) = position + 1;
}

// After the append: writes the bias of each slot, -infinity or false where it is not seen. A thread
// for each of [B, slot_bias_heads(), R].
template <int kThreads>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(kThreads, 1)
    slot_bias_kernel(ATTN_ARGUMENTS const StepArguments arguments) {
  const StepProblem& p = arguments.problem;
  const int64_t slots = p.attention.Mkv, heads = p.slot_bias_heads();
  const int64_t at = int64_t{block_index().x} * kThreads + thread_index();
  const int64_t slot = at % slots, h = at / slots % heads, b = at / slots / heads;
  if (b >= p.attention.B) return;
  const StreamWindow window(p, b, position_of(p, b));
  const int64_t age = window.age(slot);
  const bool is_seen = age < window.seen && !p.is_padding(b, slot);
  const Scores& to = arguments.slot_bias;
  const int64_t bytes = element_bytes(to.dtype);
  char* const element = to.row(b, h, 0) + slot * bytes;
  if (!p.bias) {
    *reinterpret_cast<Flag*>(element) = is_seen;
  } else if (is_seen) {
    copy_element(element, p.bias.row(b, h, 0) + (p.window - 1 - age) * p.bias.stride_n * bytes,
                 bytes);
  } else if (to.dtype == DType::kBool) {
    *reinterpret_cast<Flag*>(element) = false;
  } else {
    write_number(element, to.dtype, -infinity());
  }
}

}  // namespace attn::cuda::decode
