// What each lane calculates for itself.
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "../gpu_arithmetic.h"
#include "block.h"
#include "operations.h"

namespace attn::ptx {
namespace {

// One lane's part of an instruction: how many operands it has, F's arguments say.
template <class F, class R, class... T, size_t... I>
void execute(Warp& warp, const Instruction& instruction, Lanes lanes, std::index_sequence<I...>) {
  uint64_t* result = warp.values(instruction.operands[0]);
  const uint64_t* sources[] = {warp.values(instruction.operands[1 + I])...};
  for_each(lanes, [&](int lane) {
    result[lane] = bits_of(static_cast<R>(F{}(as<T>(sources[I][lane])...)));
  });
}

template <class R, class... T, class F>
void add(Table& table, const std::string& opcode, F) {
  table[opcode] = {.execute = [](Warp& warp, const Instruction& instruction, Lanes lanes) {
    execute<F, R, T...>(warp, instruction, lanes, std::index_sequence_for<T...>());
  }};
}

// Calls body(suffix, a value of the type) for types of so many letters.
template <class... T, class Body>
void for_types(const Body& body) {
  const auto name = [](auto x) {
    using Type = decltype(x);
    return (std::is_floating_point_v<Type> ? ".f"
            : std::is_signed_v<Type>       ? ".s"
                                           : ".u") +
           std::to_string(8 * sizeof(Type));
  };
  (body(name(T{}), T{}), ...);
}
template <class Body>
void for_integers(const Body& body) {
  for_types<uint16_t, int16_t, uint32_t, int32_t, uint64_t, int64_t>(body);
}
template <class Body>
void for_floats(const Body& body) {
  for_types<float, double>(body);
}
template <class Body>
void for_bits(const Body& body) {
  body(std::string(".b16"), uint16_t{});
  body(std::string(".b32"), uint32_t{});
  body(std::string(".b64"), uint64_t{});
}

template <class T>
using Unsigned = std::make_unsigned_t<T>;

template <class T>
T quotient(T a, T b) {
  if (b == 0) return static_cast<T>(-1);  // any value, says the PTX ISA
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return static_cast<T>(-Unsigned<T>(a));
  return static_cast<T>(a / b);
}

template <class T>
T high_product(T a, T b) {
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return static_cast<T>(static_cast<Wide>(a) * b >> 8 * sizeof(T));
}

void add_integers(Table& table) {
  for_integers([&](const std::string& type, auto zero) {
    using T = decltype(zero);
    using U = uint64_t;  // wraps around, and signed numbers give the same bits
    add<T, T, T>(table, "add" + type, [](T a, T b) { return U(a) + U(b); });
    add<T, T, T>(table, "sub" + type, [](T a, T b) { return U(a) - U(b); });
    add<T, T, T>(table, "mul.lo" + type, [](T a, T b) { return U(a) * U(b); });
    add<T, T, T, T>(table, "mad.lo" + type, [](T a, T b, T c) { return U(a) * U(b) + U(c); });
    add<T, T, T>(table, "mul.hi" + type, [](T a, T b) { return high_product(a, b); });
    add<T, T, T>(table, "div" + type, [](T a, T b) { return quotient(a, b); });
    add<T, T, T>(table, "rem" + type, [](T a, T b) { return U(a) - U(quotient(a, b)) * U(b); });
    add<T, T, T>(table, "min" + type, [](T a, T b) { return a < b ? a : b; });
    add<T, T, T>(table, "max" + type, [](T a, T b) { return a < b ? b : a; });
    add<T, T>(table, "neg" + type, [](T a) { return -U(a); });
    add<T, T>(table, "abs" + type, [](T a) { return a < 0 ? -U(a) : U(a); });
    add<T, T, uint32_t>(table, "shr" + type, [](T a, uint32_t by) {
      constexpr uint32_t kWidth = 8 * sizeof(T);
      return by < kWidth ? a >> by : a < 0 ? T(-1) : T(0);
    });
  });
  for_types<uint16_t, int16_t, uint32_t, int32_t>([&](const std::string& type, auto zero) {
    using T = decltype(zero);
    using Wide = std::conditional_t<sizeof(T) == 2,
                                    std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
                                    std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;
    add<Wide, T, T>(table, "mul.wide" + type, [](T a, T b) { return Wide{a} * Wide{b}; });
  });
}

void add_bits(Table& table) {
  for_bits([&](const std::string& type, auto zero) {
    using T = decltype(zero);
    add<T, T, T>(table, "and" + type, [](T a, T b) { return a & b; });
    add<T, T, T>(table, "or" + type, [](T a, T b) { return a | b; });
    add<T, T, T>(table, "xor" + type, [](T a, T b) { return a ^ b; });
    add<T, T>(table, "not" + type, [](T a) { return ~a; });
    add<T, T, uint32_t>(table, "shl" + type, [](T a, uint32_t by) {
      return by < 8 * sizeof(T) ? uint64_t{a} << by : 0;
    });
  });
  add<bool, bool, bool>(table, "and.pred", [](bool a, bool b) { return a && b; });
  add<bool, bool, bool>(table, "or.pred", [](bool a, bool b) { return a || b; });
  add<bool, bool, bool>(table, "xor.pred", [](bool a, bool b) { return a != b; });
  add<bool, bool>(table, "not.pred", [](bool a) { return !a; });
  add<uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>(
      table, "bfi.b32", [](uint32_t a, uint32_t b, uint32_t at, uint32_t length) {
        const uint64_t field = ((uint64_t{1} << (length & 255)) - 1) << (at & 255);
        return (uint64_t{b} & ~field) | ((uint64_t{a} << (at & 255)) & field);
      });
}

void add_floats(Table& table) {
  for_floats([&](const std::string& type, auto zero) {
    using T = decltype(zero);
    for (const char* rounding : {"", ".rn"}) {
      add<T, T, T>(table, std::string("add") + rounding + type, [](T a, T b) { return a + b; });
      add<T, T, T>(table, std::string("sub") + rounding + type, [](T a, T b) { return a - b; });
      add<T, T, T>(table, std::string("mul") + rounding + type, [](T a, T b) { return a * b; });
    }
    add<T, T, T>(table, "div.rn" + type, [](T a, T b) { return a / b; });
    add<T, T>(table, "rcp.rn" + type, [](T a) { return 1 / a; });
    add<T, T, T, T>(table, "fma.rn" + type, [](T a, T b, T c) { return std::fma(a, b, c); });
    add<T, T, T>(table, "min" + type, [](T a, T b) { return std::fmin(a, b); });
    add<T, T, T>(table, "max" + type, [](T a, T b) { return std::fmax(a, b); });
    add<T, T>(table, "neg" + type, [](T a) { return -a; });
    add<T, T>(table, "abs" + type, [](T a) { return std::fabs(a); });
    // Of b the magnitude, of a the sign.
    add<T, T, T>(table, "copysign" + type, [](T a, T b) { return std::copysign(b, a); });
  });
  add<float, float>(table, "ex2.approx.ftz.f32", [](float x) { return gpu::exp2_approximate(x); });
}

void add_comparisons(Table& table) {
  const auto add_ordered = [&](const std::string& type, auto zero) {
    using T = decltype(zero);
    add<bool, T, T>(table, "setp.eq" + type, [](T a, T b) { return a == b; });
    add<bool, T, T>(table, "setp.lt" + type, [](T a, T b) { return a < b; });
    add<bool, T, T>(table, "setp.le" + type, [](T a, T b) { return a <= b; });
    add<bool, T, T>(table, "setp.gt" + type, [](T a, T b) { return a > b; });
    add<bool, T, T>(table, "setp.ge" + type, [](T a, T b) { return a >= b; });
    // False where either is NaN; the one true there is neu.
    add<bool, T, T>(table, "setp.ne" + type, [](T a, T b) { return a < b || a > b; });
  };
  for_integers(add_ordered);
  for_bits(add_ordered);
  for_floats(add_ordered);
  for_floats([&](const std::string& type, auto zero) {
    using T = decltype(zero);
    add<bool, T, T>(table, "setp.equ" + type, [](T a, T b) { return !(a < b || a > b); });
    add<bool, T, T>(table, "setp.neu" + type, [](T a, T b) { return a != b; });
    add<bool, T, T>(table, "setp.ltu" + type, [](T a, T b) { return !(a >= b); });
    add<bool, T, T>(table, "setp.leu" + type, [](T a, T b) { return !(a > b); });
    add<bool, T, T>(table, "setp.gtu" + type, [](T a, T b) { return !(a <= b); });
    add<bool, T, T>(table, "setp.geu" + type, [](T a, T b) { return !(a < b); });
    add<bool, T, T>(table, "setp.num" + type, [](T a, T b) { return a == a && b == b; });
    add<bool, T, T>(table, "setp.nan" + type, [](T a, T b) { return a != a || b != b; });
  });
}

// A pair's low and high half.
template <class T>
void unpack(Warp& warp, const Instruction& instruction, Lanes lanes) {
  const uint64_t* pair = warp.values(instruction.operands[2]);
  for_each(lanes, [&](int lane) {
    const uint64_t bits = pair[lane];
    warp.values(instruction.operands[0])[lane] = static_cast<T>(bits);
    warp.values(instruction.operands[1])[lane] = static_cast<T>(bits >> 8 * sizeof(T));
  });
}

// Moves, selections and what means nothing here: all addresses are generic ones.
void add_moves(Table& table) {
  const auto add_moves_of = [&](const std::string& type, auto zero) {
    using T = decltype(zero);
    add<T, T>(table, "mov" + type, [](T a) { return a; });
    add<T, T, T, bool>(table, "selp" + type, [](T a, T b, bool first) { return first ? a : b; });
  };
  for_integers(add_moves_of);
  for_bits(add_moves_of);
  for_floats(add_moves_of);
  add<uint32_t, uint16_t, uint16_t>(table, "mov.b32.pack", [](uint16_t low, uint16_t high) {
    return low | uint32_t{high} << 16;
  });
  add<uint64_t, uint32_t, uint32_t>(table, "mov.b64.pack", [](uint32_t low, uint32_t high) {
    return low | uint64_t{high} << 32;
  });
  table["mov.b32.unpack"] = {.execute = &unpack<uint16_t>};
  table["mov.b64.unpack"] = {.execute = &unpack<uint32_t>};
  add<bool, bool>(table, "mov.pred", [](bool a) { return a; });
  for (const char* opcode : {"cvta.to.global.u64", "cvta.local.u64", "cvta.param.u64"}) {
    add<uint64_t, uint64_t>(table, opcode, [](uint64_t a) { return a; });
  }
}

}  // namespace

void add_arithmetic(Table& table) {
  add_integers(table);
  add_bits(table);
  add_floats(table);
  add_comparisons(table);
  add_moves(table);
}

void add_conversions(Table& table) {
  // Between integers by the source's sign; to wider floats and to nearest floats alike.
  for_integers([&](const std::string& to, auto to_zero) {
    for_integers([&](const std::string& from, auto from_zero) {
      using T = decltype(from_zero);
      add<decltype(to_zero), T>(table, "cvt" + to + from, [](T a) { return a; });
    });
  });
  for_floats([&](const std::string& to, auto to_zero) {
    using R = decltype(to_zero);
    for_integers([&](const std::string& from, auto from_zero) {
      using T = decltype(from_zero);
      add<R, T>(table, "cvt.rn" + to + from, [](T a) { return static_cast<R>(a); });
    });
  });
  add<double, float>(table, "cvt.f64.f32", [](float a) { return a; });
  add<float, double>(table, "cvt.rn.f32.f64", [](double a) { return a; });
  add<float, uint16_t>(table, "cvt.f32.f16", [](uint16_t a) { return gpu::from_half(a); });
  add<uint16_t, float>(table, "cvt.rn.f16.f32", [](float a) { return gpu::to_half(a); });
  add<uint16_t, float>(table, "cvt.rn.bf16.f32", [](float a) { return gpu::to_bfloat16(a); });
  add<uint32_t, float, float>(table, "cvt.rn.f16x2.f32", [](float high, float low) {
    return gpu::to_half(low) | uint32_t{gpu::to_half(high)} << 16;
  });
  add<uint32_t, float, float>(table, "cvt.rn.bf16x2.f32", [](float high, float low) {
    return gpu::to_bfloat16(low) | uint32_t{gpu::to_bfloat16(high)} << 16;
  });
  add<uint32_t, float>(table, "cvt.rna.tf32.f32", [](float a) { return gpu::to_tf32(a); });
}

}  // namespace attn::ptx
