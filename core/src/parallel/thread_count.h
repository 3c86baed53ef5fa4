// How many threads a call uses when its attn_exec does not say.
#pragma once

namespace attn {

// No call gets more workers than this, whatever it asks for.
constexpr int kMostThreads = 1024;

// ATTN_NUM_THREADS if it is a number in [1, kMostThreads], else the number of CPUs in this process'
// affinity mask. Read once.
int default_num_threads();

}  // namespace attn
