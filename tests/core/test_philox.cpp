// Philox4x32-10 against the known answers of Random123 (kat_vectors).
#include "check.h"
#include "problem/philox.h"

namespace {

struct KnownAnswer {
  uint32_t counter[4];
  uint32_t key[2];
  uint32_t words[4];
};

constexpr KnownAnswer kKnownAnswers[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

}  // namespace

int main() {
  for (const KnownAnswer& known : kKnownAnswers) {
    const uint32_t* c = known.counter;
    const attn::PhiloxWords got =
        attn::philox4x32_10(c[0], c[1], c[2], c[3], known.key[0], known.key[1]);
    for (int i = 0; i < 4; ++i) CHECK(got.w[i] == known.words[i]);
  }
  return check::outcome();
}
