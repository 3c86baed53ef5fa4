// The library's own threads, for callers that bring no executor.
#pragma once

namespace attn {

// Calls work(worker, context) for worker 0 on the calling thread and for workers 1 to workers - 1
// on the pool's threads, as far as these are free to come before worker 0 returns. So worker 0
// must be able to do all the work alone. Returns when every worker that came has returned.
//
// Safe to call from any thread, from within work, and in a forked child: a call from within work,
// or while another caller holds the pool, gets worker 0 only.
void run_on_pool(int workers, void (*work)(int worker, void* context), void* context);

}  // namespace attn
