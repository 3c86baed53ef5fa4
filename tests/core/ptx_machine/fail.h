// How the machine stops.
#pragma once

namespace attn::ptx {

// Prints what is wrong, and where the machine was, and stops the process.
[[noreturn, gnu::format(printf, 1, 2)]] void fail(const char* format, ...);

}  // namespace attn::ptx
