// Rows widened to floats, and the microkernel that multiplies them with rows of a weight in bfloat16 or int8.
//
// In: rows of activations wherever they lie, and rows of a weight, `stride` numbers apart. Out: float32 sums. For
// processors without the bfloat16 extension; callers are matmul_neon.h and prefill_attention_neon.h. A weight is widened
// in registers and multiplied by one to four rows. Each result is two sums, of the channels 0 to 3 and 4 to 7 of every
// eight, in the order of the channels: a row has the same bits whatever is beside it.
#pragma once
#include <arm_neon.h>

#include <algorithm>

#include "memory.h"
#include "simd.h"

namespace vl2 {

struct EightFloats {
    float32x4_t low, high;
};

inline EightFloats load_eight(const bf16* from) {
    const uint16x8_t halves = vld1q_u16(from);
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(halves), 16)),
            vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(halves), 16))};
}

inline EightFloats load_eight(const int8_t* from) {
    const int16x8_t halves = vmovl_s8(vld1_s8(from));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(halves))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(halves)))};
}

// Rows in tiles of up to four: [tile][eight channels][row of the tile].
class PackedFloats {
   public:
    // Pack `rows` rows of `channels` channels, which lie where `row_at` says; behind the last channel are zeros.
    template <class RowAt>
    void pack(int64_t rows, int64_t channels, const RowAt& row_at) {
        rows_ = rows;
        channels_ = channels;
        steps_ = (channels + 7) / 8;
        values_.resize(std::max<size_t>(values_.size(), rows * steps_));
        for (int64_t row = 0; row < rows; row++) {
            const int64_t first = row / MOST * MOST, step = rows_from(first);
            EightFloats* to = &values_[first * steps_ + row - first];
            const bf16* from = row_at(row);
            int64_t k = 0;
            for (; k + 8 <= channels; k += 8, to += step) *to = load_eight(from + k);
            if (k < channels) {
                bf16 rest[8] = {};
                std::copy(from + k, from + channels, rest);
                *to = load_eight(rest);
            }
        }
    }

    // Outputs 0 to `outputs` of each row, to where `out_at` says of it.
    template <class T, class OutAt>
    void multiply(const T* weight, int64_t stride, int64_t outputs, const OutAt& out_at) const {
        // Some rows of a weight go over all tiles before the next do: the second cache holds them meanwhile.
        const int64_t bytes = std::max<int64_t>(1, channels_ * static_cast<int64_t>(sizeof(T)));
        const int64_t at_once = std::max<int64_t>(16, (1 << 18) / bytes / 16 * 16);
        for (int64_t n = 0; n < outputs; n += at_once)
            for (int64_t tile = 0; tile < rows_; tile += MOST)
                with_constant<MOST>(rows_from(tile), [&](auto count) {
                    multiply_tile<count.value>(tile, weight, stride, n, std::min(outputs, n + at_once), out_at);
                });
    }

   private:
    static constexpr int64_t MOST = 4;

    int64_t rows_ = 0, channels_ = 0, steps_ = 0;
    AlignedVector<EightFloats> values_;

    int64_t rows_from(int64_t tile) const { return std::min(MOST, rows_ - tile); }

    // Four rows of a weight at once, or two with more than two rows: 16 registers of sums.
    template <int X, class T, class OutAt>
    void multiply_tile(int64_t tile, const T* weight, int64_t stride, int64_t first, int64_t last,
                       const OutAt& out_at) const {
        constexpr int W = X <= 2 ? 4 : 2;
        for (int64_t n = first; n < last; n += W) {
            const T* rows[W];
            for (int r = 0; r < W; r++) rows[r] = weight + std::min(n + r, last - 1) * stride;
            float sums[X][W];
            microkernel<X, W>(&values_[tile * steps_], rows, sums);
            for (int x = 0; x < X; x++) std::copy_n(sums[x], std::min<int64_t>(W, last - n), out_at(tile + x) + n);
        }
    }

    template <int X, int W, class T>
    void microkernel(const EightFloats* x, const T* (&rows)[W], float (&out)[X][W]) const {
        float32x4_t low[X][W] = {}, high[X][W] = {};
        T rest[W][8] = {};
        const int64_t num_rest = channels_ % 8, whole = channels_ - num_rest;
        for (int64_t end = whole;; end = 8) {
            for (int64_t k = 0; k < end; k += 8, x += X) {
                EightFloats weights[W];
#pragma GCC unroll 4
                for (int w = 0; w < W; w++) weights[w] = load_eight(rows[w] + k);
#pragma GCC unroll 4
                for (int i = 0; i < X; i++)
#pragma GCC unroll 4
                    for (int w = 0; w < W; w++) {
                        low[i][w] = vfmaq_f32(low[i][w], x[i].low, weights[w].low);
                        high[i][w] = vfmaq_f32(high[i][w], x[i].high, weights[w].high);
                    }
            }
            if (rows[0] == rest[0] || num_rest == 0) break;
            // Once more for the rest, filled up with zeros: beyond a row lies the next, or what is not ours to read.
            for (int w = 0; w < W; w++) {
                std::copy_n(rows[w] + whole, num_rest, rest[w]);
                rows[w] = rest[w];
            }
        }
        for (int i = 0; i < X; i++)
            for (int w = 0; w < W; w++) out[i][w] = sum((Floats)vaddq_f32(low[i][w], high[i][w]));
    }
};

// Rows of bfloat16 times rows of a weight in bfloat16.
using Bf16Rows = PackedFloats;

}  // namespace vl2
