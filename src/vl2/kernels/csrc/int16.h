// How activations become integers of 16 bits, which few rows are multiplied as with quantized weights.
//
// In: the largest magnitude of a row (int8) or of a group of 32 inputs (int4). Out: a power of two that fits it, and its
// inverse. What is bfloat16 loses nothing down to a hundredth of the largest, and below no more than 2^-15 of it. Used
// by matmul_quantized_avx2.h and matmul_quantized_avx512.h, whose sums are exact: a row has the same bits with both. And
// by matmul_quantized_neon.h. All is portable.
#pragma once
#include <algorithm>
#include <cmath>

#include "matmul.h"
#include "memory.h"

namespace vl2 {

// How floats become integers of 16 bits. A power of two, for a product with one loses nothing.
struct PowerScale {
    float factor;  // times a float, the integer
    float scale;   // times the integer, the float; NaN where the largest is not finite, so that every output is NaN
};

// `largest` is bfloat16 without its sign. It becomes at most 32512, of which the high byte is 127: a mantissa of all
// ones would be one more, and counts as the next power. Zero counts as a tiny number: its power of two must have an
// inverse.
inline PowerScale power_scale(uint32_t largest) {
    const int32_t power = static_cast<int32_t>((std::max(largest, 0x0d80u) + 1) >> 7) - 127;
    const float scale = largest < 0x7f80 ? bit_cast<float>((127 - 14 + power) << 23) : NAN;
    return {bit_cast<float>((127 + 14 - power) << 23), scale};
}

// One group of a row for int4, as two bytes each, 256 * high + low, both with a sign. They lie as the codes do in four
// bytes of a panel: of each eight inputs first 0, 4, 1, 5, whose codes are the low halves of the bytes, then 2, 6, 3, 7.
struct alignas(LINE_BYTES) Int16Group {
    int8_t high[GROUP], low[GROUP];
};

}  // namespace vl2
