// Activations as integers of 16 bits, by a power of two that fits the largest of some: what is bfloat16 loses nothing
// down to a hundredth of that, and below no more than 2^-15 of it. Each is held as two of 8 bits, 256 * high + low, for
// which there is an instruction.
#pragma once
#include <algorithm>
#include <cmath>

#include "simd.h"

namespace vl2 {

struct Fitted {
    float factor;  // by which a number becomes a whole one
    float scale;   // of one: a power of two; NaN where the largest is not finite
};

// `largest` is bfloat16 without its sign. It becomes at most 32512, of which the high byte is 127: a mantissa of all ones would
// be one more, and counts as the next power. Zero counts as a tiny number: its power of two must have an inverse.
inline Fitted fitted(uint32_t largest) {
    const int32_t power = static_cast<int32_t>((std::max(largest, 0x0d80u) + 1) >> 7) - 127;
    const float scale = largest < 0x7f80 ? bits<float>((127 - 14 + power) << 23) : NAN;
    return {bits<float>((127 + 14 - power) << 23), scale};
}

// The high ones of sixteen; the low ones are the lowest bytes.
inline __m512i high_bytes(__m512i whole) {
    return _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
}

}  // namespace vl2
