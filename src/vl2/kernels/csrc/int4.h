// Weights quantized to int4 and dequantized: what vl2/quant/formats.py does in PyTorch, ten times faster.
//
// In: a weight [outputs, inputs] in float32 or bfloat16. Out: codes in panels of sixteen outputs and a half-precision
// scale for each group of 32 inputs; and back as floats, or with bfloat16 products as bfloat16 (int4_avx512.h,
// int4_neon.h). Called by kernels.cpp while a checkpoint is loaded, and by fused_prefill.h and the files of
// prefill_moe.h, which multiply many rows.
// Results are those of formats.py to the bit.
#pragma once
#include <algorithm>
#include <cmath>

#include "matmul.h"
#include "threads.h"

namespace vl2 {

// Round to nearest, ties to even. Only finite values come here.
inline uint16_t to_half(float value) {
    const uint32_t word = bit_cast<uint32_t>(value), sign = word >> 16 & 0x8000, rest = word & 0x7fffffff;
    if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00);
    if (rest < 0x38800000u) return static_cast<uint16_t>(sign | std::lrint(bit_cast<float>(rest) * 16777216.0f));
    return static_cast<uint16_t>(sign | (rest + 0xfff + (rest >> 13 & 1) - 0x38000000u) >> 13);
}

constexpr float TO_INTEGER = 12582912.0f;  // 1.5 * 2^23: adding and taking it off again rounds to an integer

inline Floats clamp(Floats x, float low, float high) {
    x = x < splat(low) ? splat(low) : x;
    return x > splat(high) ? splat(high) : x;
}

// w / scale as integers from -8 to 7.
inline Floats int4_codes(Floats w, float inverse) { return clamp(w * inverse + TO_INTEGER - TO_INTEGER, -8.0f, 7.0f); }

// What one group loses with a scale.
inline float squared_error(const float* values, float scale) {
    const float inverse = scale == 0 ? 0 : 1 / scale;
    Floats total = {};
    for (int64_t k = 0; k < GROUP; k += LANES) {
        const Floats error = int4_codes(load(values + k), inverse) * scale - load(values + k);
        total += error * error;
    }
    return sum(total);
}

// One panel of 16 rows; those from `rows` on are empty.
template <class T>
inline void panel_to_int4(const T* weight, int64_t rows, int64_t inputs, const float* scale_ratios, int64_t num_ratios,
                          uint8_t* codes, uint16_t* scales) {
    const int64_t groups = padded(inputs) / GROUP;
    std::fill_n(codes, groups * BLOCK_BYTES, 0);
    for (int64_t row = 0; row < PANEL; row++) {
        for (int64_t g = 0; g < groups; g++) {
            float values[GROUP] = {};
            bool is_finite = true;
            if (row < rows) {
                const int64_t count = std::min(GROUP, inputs - g * GROUP);
                for (int64_t k = 0; k < count; k++) {
                    if constexpr (sizeof(T) == 2) values[k] = to_float(weight[row * inputs + g * GROUP + k]);
                    else values[k] = weight[row * inputs + g * GROUP + k];
                    is_finite &= std::isfinite(values[k]);
                }
            }
            if (!is_finite) {  // no code stands for it: a scale that is no number shows where it was
                scales[g * PANEL + row] = 0x7e00;
                continue;
            }
            const float high = *std::max_element(values, values + GROUP),
                        low = *std::min_element(values, values + GROUP);
            // Codes reach one further below zero than above: the larger side is put there, by the sign of the scale.
            const float largest = (high > -low ? high : low) / -8.0f;
            // The first where it is infinite: then no error is less.
            uint16_t best = to_half(largest * scale_ratios[0]);
            float least = INFINITY;
            for (int64_t i = 0; i < num_ratios; i++) {
                const uint16_t half = to_half(largest * scale_ratios[i]);
                const float error = squared_error(values, from_half(half));
                if (error < least) {
                    least = error;
                    best = half;
                }
            }
            scales[g * PANEL + row] = best;
            const float scale = from_half(best), inverse = scale == 0 ? 0 : 1 / scale;
            float rounded[GROUP];
            for (int64_t k = 0; k < GROUP; k += LANES) store(rounded + k, int4_codes(load(values + k), inverse));
            for (int64_t k = 0; k < GROUP; k++) {
                // Input 2 * (4 * load + j) + half of a group lies in 16-bit word 32 * load + 2 * row + half, from bit
                // 4j on.
                const int64_t word = 32 * (k / 8) + 2 * row + k % 2, j = k / 2 % 4;
                const int code = static_cast<int>(rounded[k]) + 8;
                codes[g * BLOCK_BYTES + 2 * word + j / 2] |= static_cast<uint8_t>(code << (j % 2 * 4));
            }
        }
    }
}

template <class T>
inline void to_int4(const T* weight, int64_t outputs, int64_t inputs, const float* scale_ratios, int64_t num_ratios,
                    uint8_t* codes, uint16_t* scales) {
    const int64_t groups = padded(inputs) / GROUP;
    for (int64_t n = 0; n < outputs; n += PANEL)
        panel_to_int4(weight + n * inputs, std::min(PANEL, outputs - n), inputs, scale_ratios, num_ratios,
                      codes + n / PANEL * groups * BLOCK_BYTES, scales + n / PANEL * groups * PANEL);
}

// Rows from one that begins a panel to `last`, as floats [rows, inputs].
inline void from_int4(const uint8_t* codes, const uint16_t* scales, int64_t first, int64_t last, int64_t inputs,
                      float* out) {
    const int64_t groups = padded(inputs) / GROUP;
    for (int64_t row = first; row < last; row++, out += inputs) {
        const int64_t panel = row / PANEL * groups, lane = row % PANEL;
        for (int64_t g = 0; g < groups; g++) {
            uint16_t words[GROUP / 4];
            for (int64_t i = 0; i < GROUP / 4; i++)
                std::memcpy(words + i, codes + (panel + g) * BLOCK_BYTES + 2 * (32 * (i / 2) + 2 * lane + i % 2), 2);
            float values[GROUP];
            for (int64_t k = 0; k < GROUP; k++)
                values[k] = static_cast<float>((words[k / 8 * 2 + k % 2] >> 4 * (k / 2 % 4) & 15) - 8);
            const Floats scale = splat(from_half(scales[(panel + g) * PANEL + lane]));
            for (int64_t k = 0; k < GROUP; k += LANES) store(values + k, load(values + k) * scale);
            std::memcpy(out + g * GROUP, values, std::min(GROUP, inputs - g * GROUP) * sizeof(float));
        }
    }
}

}  // namespace vl2

#if defined(VL2_AVX512)
#include "int4_avx512.h"
#elif defined(VL2_NEON_BF16)
#include "int4_neon.h"
#endif

namespace vl2 {

// A whole weight [outputs, inputs] as bfloat16. Whether it was of whole panels and groups, and this machine has a kernel
// for it; nothing is written where not.
inline bool dequantize_int4([[maybe_unused]] const uint8_t* codes, [[maybe_unused]] const uint16_t* scales,
                            int64_t outputs, int64_t inputs, [[maybe_unused]] bf16* out,
                            [[maybe_unused]] int threads) {
    if (!HAS_BF16_PRODUCTS || outputs % PANEL || inputs % GROUP) return false;
#if defined(VL2_AVX512) || defined(VL2_NEON_BF16)
    const int64_t groups = inputs / GROUP;
    parallel_for(outputs / PANEL, threads, [&](int64_t panel) {
        dequantize_panel(codes + panel * groups * BLOCK_BYTES, scales + panel * groups * PANEL, groups,
                         out + panel * PANEL * inputs);
    });
#endif
    return true;
}

}  // namespace vl2
