// All queries of one head with NEON.
//
// In and out as prefill_attention.h says, which alone includes this. Sixteen queries at a time are multiplied with the
// keys where they lie, and what the softmax makes of their scores with the values, which are transposed once for all
// queries. Both products are those of packed_pairs_neon.h or packed_floats_neon.h.
#pragma once
#include <algorithm>

#include "memory.h"

namespace vl2 {

constexpr int64_t QUERY_TILE = 16;

// Eight numbers of eight rows: number n of row m becomes number m of row n.
inline void transpose(uint16x8_t (&rows)[8]) {
    for (int step = 0; step < 3; step++) {
        uint16x8_t other[8];
        for (int i = 0; i < 4; i++) {
            other[2 * i] = vzip1q_u16(rows[i], rows[i + 4]);
            other[2 * i + 1] = vzip2q_u16(rows[i], rows[i + 4]);
        }
        std::copy(other, other + 8, rows);
    }
}

// The values of a head as [channels][keys]; `width` keys of each channel, zeros behind the last.
inline void transpose_values(const Attention& a, int64_t b, int64_t h, int64_t width, bf16* out) {
    for (int64_t k = 0; k < width; k += 8) {
        const int64_t count = std::min<int64_t>(8, a.keys - k);
        for (int64_t c = 0; c < a.value_channels; c += 8) {
            const int64_t channels = std::min<int64_t>(8, a.value_channels - c);
            bf16 part[8][8] = {};
            for (int64_t i = 0; i < count; i++) std::copy_n(a.value.at(b, h, k + i) + c, channels, part[i]);
            uint16x8_t rows[8];
            for (int i = 0; i < 8; i++) rows[i] = vld1q_u16(part[i]);
            transpose(rows);
            for (int64_t i = 0; i < channels; i++) vst1q_u16(out + (c + i) * width + k, rows[i]);
        }
    }
}

// e^(scale * score - largest) of the first `visible_keys` scores as bfloat16, zeros up to `width`, a multiple of eight;
// returns their sum before rounding. Scores are written over.
inline float softmax_to_bf16(float* scores, float scale, int64_t visible_keys, int64_t width, bf16* weights) {
    std::fill(scores + visible_keys, scores + width, -INFINITY);
    Floats best = splat(-INFINITY);
    for (int64_t k = 0; k < width; k += LANES) {
        const Floats score = load(scores + k) * scale;
        store(scores + k, score);
        best = score > best ? score : best;
    }
    const float largest = vmaxvq_f32((float32x4_t)best);
    Floats total = {};
    for (int64_t k = 0; k < width; k += LANES) {
        const Floats power = exponential(load(scores + k) - largest);
        total += power;
        store(weights + k, power);
    }
    return sum(total);
}

inline void attend_queries(const Attention& a, int64_t b, int64_t h) {
    static thread_local AlignedVector<bf16> values, weights;
    static thread_local AlignedVector<float> scores;
    static thread_local Bf16Rows queries, weight_rows;
    const int64_t width = round_up(a.keys, 8), shared = h / a.shared;
    values.resize(a.value_channels * width);
    weights.resize(QUERY_TILE * width);
    scores.resize(QUERY_TILE * width);
    transpose_values(a, b, shared, width, values.data());
    for (int64_t first = 0; first < a.queries; first += QUERY_TILE) {
        const int64_t count = std::min(QUERY_TILE, a.queries - first), most = a.visible_keys(first + count - 1);
        queries.pack(count, a.channels, [&](int64_t q) { return a.query.at(b, h, first + q); });
        queries.multiply(a.key.at(b, shared, 0), a.key.row, most, [&](int64_t q) { return &scores[q * width]; });
        float totals[QUERY_TILE], sums[QUERY_TILE][MOST_VALUE_CHANNELS];
        const int64_t used = round_up(most, 8);
        for (int64_t q = 0; q < count; q++)
            totals[q] = softmax_to_bf16(&scores[q * width], static_cast<float>(a.scale), a.visible_keys(first + q),
                                        used, &weights[q * width]);
        weight_rows.pack(count, used, [&](int64_t q) { return &weights[q * width]; });
        weight_rows.multiply(values.data(), width, a.value_channels, [&](int64_t q) { return sums[q]; });
        for (int64_t q = 0; q < count; q++) {
            bf16* out = a.out.at(b, h, first + q);
            for (int64_t c = 0; c < a.value_channels; c++) out[c] = to_bf16(sums[q][c] / totals[q]);
        }
    }
}

}  // namespace vl2
