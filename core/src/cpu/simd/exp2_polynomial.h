// Coefficients of 2^r, minimax in relative error with the constant term fixed at 1, so that the
// power of an integer is exact.
#pragma once

namespace attn::cpu {

// On [-1/2, 1/2], to 9.2e-8.
constexpr float kExp2C1 = 0.6931470036506653f;
constexpr float kExp2C2 = 0.24022242426872253f;
constexpr float kExp2C3 = 0.05550733581185341f;
constexpr float kExp2C4 = 0.009671512991189957f;
constexpr float kExp2C5 = 0.001326472731307149f;

// On [0, 1], to 8.3e-8: for instruction sets that subtract the integer part in one instruction.
constexpr float kExp2FractionC1 = 0.693151295185089f;
constexpr float kExp2FractionC2 = 0.240164443850517f;
constexpr float kExp2FractionC3 = 0.055799912661314f;
constexpr float kExp2FractionC4 = 0.009017029777169f;
constexpr float kExp2FractionC5 = 0.001867130165920f;

// On [0, 1], to 3.5e-6 and with the sum fixed at 1, too, for powers that are rounded to 16 bits
// afterwards: a score that rounding left next to its row's maximum must not be off by that much.
constexpr float kRoughExp2C1 = 0.6930321455001831f;
constexpr float kRoughExp2C2 = 0.2413797676563263f;
constexpr float kRoughExp2C3 = 0.05203237012028694f;
constexpr float kRoughExp2C4 = 0.013555747456848621f;

// Below this 2^x is flushed to 0. There is no bound above: x is a score less its row's maximum or
// log-sum-exp, so at most rounding lifts it over 0.
constexpr float kExp2Lowest = -127.0f;

}  // namespace attn::cpu
