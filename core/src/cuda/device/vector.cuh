// Consecutive elements that one instruction loads or stores.
#pragma once

namespace attn::cuda {

template <class Element, int count>
struct alignas(count * sizeof(Element)) Vector {
  Element values[count];
};

using FourFloats = Vector<float, 4>;

}  // namespace attn::cuda
