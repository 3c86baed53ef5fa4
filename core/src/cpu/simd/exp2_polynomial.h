// Coefficients of 2^r on [-1/2, 1/2], shared by every float32 instruction set.
#pragma once

namespace attn::cpu {

// Minimax in relative error (9.2e-8) with the constant term fixed at 1, so that 2^0 is exactly 1.
constexpr float kExp2C1 = 0.6931470036506653f;
constexpr float kExp2C2 = 0.24022242426872253f;
constexpr float kExp2C3 = 0.05550733581185341f;
constexpr float kExp2C4 = 0.009671512991189957f;
constexpr float kExp2C5 = 0.001326472731307149f;

// Below this 2^x is flushed to 0. There is no bound above: x is a score less its row's maximum or
// log-sum-exp, so at most rounding lifts it over 0.
constexpr float kExp2Lowest = -127.0f;

}  // namespace attn::cpu
