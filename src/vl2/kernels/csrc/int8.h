// What stands around a product in int8: rows quantized to 8 bits, and the epilogue that makes its sums floating-point
// again.
//
// In: bfloat16 rows, or int32 sums with the scales of both sides. Out: codes with a scale each row, or bfloat16 rows
// with bias, activation and residual. Callers are kernels.cpp, where PyTorch multiplies in between, and gemm_amx.h and
// prefill_moe_int8_amx.h, where tile registers do; all use the same expressions, so all have the same bits. All is
// portable.
#pragma once
#include <algorithm>

#include "simd.h"
#include "threads.h"

namespace vl2 {

// Words whose lowest bytes are the codes: added to 1.5 * 2^23 a float is rounded to an integer, nearest and ties to
// even, which its lowest bits hold.
inline Ints code_words(Floats x, float factor) { return bit_cast<Ints>(x * factor + 12582912.0f); }

// The largest magnitude of a row; of zeros a tiny number, for it is divided by. Without their signs, bfloat16 numbers
// are in the order of their bits, so they are compared as integers.
inline float largest_magnitude(const bf16* x, int64_t width) {
    Halves most = {};
    int64_t n = 0;
    for (; n + LANES <= width; n += LANES) {
        Halves some;
        std::memcpy(&some, x + n, sizeof some);
        some &= 0x7fff;
        most = some > most ? some : most;
    }
    uint16_t largest = 0;
    for (int i = 0; i < LANES; i++) largest = std::max(largest, static_cast<uint16_t>(most[i]));
    for (; n < width; n++) largest = std::max(largest, static_cast<uint16_t>(x[n] & 0x7fff));
    return std::max(to_float(largest), 1e-30f);
}

// Quantize a row by its own largest number: codes -127 to 127, so that both signs reach as far, and the scale returned
// is such that x is about code * scale.
inline float to_int8_row(const bf16* x, int64_t width, int8_t* codes) {
    const float largest = largest_magnitude(x, width), factor = 127 / largest;
    int64_t n = 0;
    for (; n + LANES <= width; n += LANES) {
        const Bytes bytes = lowest_bytes(code_words(load(x + n), factor));
        std::memcpy(codes + n, &bytes, sizeof bytes);
    }
    for (; n < width; n++) codes[n] = static_cast<int8_t>(code_words(splat(to_float(x[n])), factor)[0]);
    return largest / 127;
}

inline void to_int8_rows(const bf16* x, int64_t rows, int64_t width, int8_t* codes, float* scales, int threads) {
    parallel_rows(rows, 8, threads,
                  [&](int64_t r) { scales[r] = to_int8_row(x + r * width, width, codes + r * width); });
}

// A sum times the row's scale and the column's, plus the bias, zero where there is none, and the activation of that.
// One expression: the compiler then makes the last product and the sum one instruction everywhere, and all that use it
// have the same bits.
inline Floats dequantize_sum(Ints sum, Floats row_scale, Floats column_scale, Floats bias, int64_t activation) {
    const Floats value = __builtin_convertvector(sum, Floats) * row_scale * column_scale + bias;
    return activation ? activate(rounded(value), activation) : value;
}

// out = sums * the row's scale * the column's + bias; the activation of that, rounded, where there is one; and that,
// rounded, added to `residual` [rows, width] where there is one.
inline void from_int32_sums(const int32_t* sums, int64_t rows, int64_t width, const float* row_scales,
                            const float* column_scales, const bf16* bias, int64_t activation, const bf16* residual,
                            bf16* out, int threads) {
    parallel_rows(rows, 8, threads, [&](int64_t r) {
        for (int64_t first = 0; first < width; first += LANES) {
            // The last lanes of a row begin earlier, over some that are done: the same numbers once more.
            const int64_t n = std::min(first, width - LANES);
            Ints integers;
            std::memcpy(&integers, sums + r * width + n, sizeof integers);
            const Floats added = bias ? load(bias + n) : Floats{};
            Floats value = dequantize_sum(integers, splat(row_scales[r]), load(column_scales + n), added, activation);
            if (residual) value = load(residual + r * width + n) + rounded(value);
            store(out + r * width + n, value);
        }
    });
}

}  // namespace vl2
