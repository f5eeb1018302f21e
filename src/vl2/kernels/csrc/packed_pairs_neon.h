// Rows packed in pairs, and the microkernel that multiplies them with pairs of rows of a weight: bfloat16 and int8.
//
// In: rows of activations wherever they lie, and rows of a weight, `stride` bytes apart. Out: the four sums of each pair
// of rows with each pair of weights, in one register, from which the caller makes its own epilogue. Needs the int8 dot
// product; with the matrix extensions one instruction makes the four sums. Callers are matmul_neon.h and, with the
// matrix extensions, gemm_neon.h, prefill_moe_neon.h and prefill_attention_neon.h. The sums of a pair are added up in
// the order of the channels and hold nothing of other pairs, nor does one row of a pair count in the sums of the other:
// a row has the same bits whatever is beside it.
#pragma once
#include <arm_neon.h>

#include <algorithm>
#include <vector>

#include "memory.h"
#include "simd.h"

namespace vl2 {

constexpr int64_t STEP_BYTES = 16;  // of a row, in one step: eight bfloat16 numbers or sixteen of int8

#if defined(VL2_NEON_BF16)

// Halves of two rows: the first eight bytes of both, or the last.
inline uint8x16_t first_halves(uint8x16_t a, uint8x16_t b) {
    return vreinterpretq_u8_u64(vzip1q_u64(vreinterpretq_u64_u8(a), vreinterpretq_u64_u8(b)));
}
inline uint8x16_t last_halves(uint8x16_t a, uint8x16_t b) {
    return vreinterpretq_u8_u64(vzip2q_u64(vreinterpretq_u64_u8(a), vreinterpretq_u64_u8(b)));
}

// What both kinds of the matrix instruction share: sixteen bytes of two rows become two operands, halves together.
struct MatrixInstruction {
    static constexpr int MOST_PAIRS = 8;  // of rows, with two of weights: 16 registers of sums
    // Pairs of weights at once. With few rows four, for two sums alone would wait for themselves at each step.
    static constexpr int weight_pairs(int pairs) { return pairs <= 2 ? 4 : 2; }

    struct Operands {
        uint8x16_t first, last;
    };
    static Operands pair(uint8x16_t a, uint8x16_t b) { return {first_halves(a, b), last_halves(a, b)}; }
};

struct Bf16Product : MatrixInstruction {
    using Sums = float32x4_t;

    static void add(Sums& sums, const Operands& x, const Operands& w) {
        sums = vbfmmlaq_f32(sums, vreinterpretq_bf16_u8(x.first), vreinterpretq_bf16_u8(w.first));
        sums = vbfmmlaq_f32(sums, vreinterpretq_bf16_u8(x.last), vreinterpretq_bf16_u8(w.last));
    }
    static float32x4_t total(Sums sums) { return sums; }
};

struct Int8Product : MatrixInstruction {
    using Sums = int32x4_t;

    static void add(Sums& sums, const Operands& x, const Operands& w) {
        sums = vmmlaq_s32(sums, vreinterpretq_s8_u8(x.first), vreinterpretq_s8_u8(w.first));
        sums = vmmlaq_s32(sums, vreinterpretq_s8_u8(x.last), vreinterpretq_s8_u8(w.last));
    }
    static int32x4_t total(Sums sums) { return sums; }
};

#else

struct Int8Product {
    static constexpr int MOST_PAIRS = 2;  // with two of weights 16 registers of sums
    static constexpr int weight_pairs(int) { return 2; }

    struct Sums {
        int32x4_t each[4];
    };
    struct Operands {
        uint8x16_t first, last;  // of one row each
    };
    static Operands pair(uint8x16_t a, uint8x16_t b) { return {a, b}; }

    static void add(Sums& sums, const Operands& x, const Operands& w) {
        const int8x16_t rows[2] = {vreinterpretq_s8_u8(x.first), vreinterpretq_s8_u8(x.last)};
        const int8x16_t weights[2] = {vreinterpretq_s8_u8(w.first), vreinterpretq_s8_u8(w.last)};
        for (int i = 0; i < 4; i++) sums.each[i] = vdotq_s32(sums.each[i], rows[i / 2], weights[i % 2]);
    }
    static int32x4_t total(const Sums& sums) {
        return vpaddq_s32(vpaddq_s32(sums.each[0], sums.each[1]), vpaddq_s32(sums.each[2], sums.each[3]));
    }
};

#endif

// Rows in pairs and pairs in tiles: [tile][sixteen bytes of a row][pair of the tile][operands].
template <class Product>
class PackedPairs {
   public:
    int64_t rows() const { return rows_; }

    // Pack `rows` rows of `bytes` bytes, which lie where `row_at` says. What is missing of the last pair and behind the
    // last channel is zeros.
    template <class RowAt>
    void pack(int64_t rows, int64_t bytes, const RowAt& row_at) {
        rows_ = rows;
        bytes_ = bytes;
        steps_ = (bytes + STEP_BYTES - 1) / STEP_BYTES;
        operands_.resize(std::max<size_t>(operands_.size(), pairs() * steps_));
        for (int64_t pair = 0; pair < pairs(); pair++) {
            const int64_t first = pair / MOST * MOST, step = pairs_from(first);
            typename Product::Operands* to = &operands_[first * steps_ + pair - first];
            const uint8_t* from[2] = {row_at(2 * pair), 2 * pair + 1 < rows ? row_at(2 * pair + 1) : nullptr};
            int64_t k = 0;
            for (; k + STEP_BYTES <= bytes; k += STEP_BYTES, to += step)
                *to = Product::pair(vld1q_u8(from[0] + k), from[1] ? vld1q_u8(from[1] + k) : vdupq_n_u8(0));
            if (k < bytes) {
                uint8_t rest[2][STEP_BYTES] = {};
                for (int i = 0; i < 2; i++)
                    if (from[i]) std::copy(from[i] + k, from[i] + bytes, rest[i]);
                *to = Product::pair(vld1q_u8(rest[0]), vld1q_u8(rest[1]));
            }
        }
    }

    // Call `write(pair, n, sums)` for each pair of rows and outputs n, n + 1: sums of the first row with both, then of
    // the second. Of an odd number of outputs the last is there twice.
    template <class Write>
    void multiply(const uint8_t* weight, int64_t stride, int64_t outputs, const Write& write) const {
        // Some rows of a weight go over all tiles before the next do: the second cache holds them meanwhile.
        const int64_t at_once = std::max<int64_t>(16, (1 << 18) / std::max<int64_t>(1, bytes_) / 16 * 16);
        for (int64_t n = 0; n < outputs; n += at_once)
            for (int64_t tile = 0; tile < pairs(); tile += MOST)
                with_constant<MOST>(pairs_from(tile), [&](auto count) {
                    multiply_tile<count.value>(tile, weight, stride, n, std::min(outputs, n + at_once), write);
                });
    }

   private:
    static constexpr int64_t MOST = Product::MOST_PAIRS;
    using Operands = typename Product::Operands;

    int64_t rows_ = 0, bytes_ = 0, steps_ = 0;
    AlignedVector<Operands> operands_;

    int64_t pairs() const { return (rows_ + 1) / 2; }
    int64_t pairs_from(int64_t tile) const { return std::min(MOST, pairs() - tile); }

    template <int X, class Write>
    void multiply_tile(int64_t tile, const uint8_t* weight, int64_t stride, int64_t first, int64_t last,
                       const Write& write) const {
        constexpr int W = Product::weight_pairs(X);
        for (int64_t n = first; n < last; n += 2 * W) {
            const uint8_t* rows[2 * W];
            for (int r = 0; r < 2 * W; r++) rows[r] = weight + std::min(n + r, last - 1) * stride;
            typename Product::Sums sums[X][W] = {};
            microkernel<X, W>(&operands_[tile * steps_], rows, sums);
            for (int w = 0; w < W && n + 2 * w < last; w++)
                for (int x = 0; x < X; x++) write(tile + x, n + 2 * w, Product::total(sums[x][w]));
        }
    }

    template <int X, int W>
    void microkernel(const Operands* x, const uint8_t* (&rows)[2 * W], typename Product::Sums (&out)[X][W]) const {
        typename Product::Sums sums[X][W] = {};
        uint8_t rest[2 * W][STEP_BYTES] = {};
        const int64_t num_rest = bytes_ % STEP_BYTES, whole = bytes_ - num_rest;
        for (int64_t end = whole;; end = STEP_BYTES) {
            for (int64_t k = 0; k < end; k += STEP_BYTES, x += X) {
                Operands weights[W];
#pragma GCC unroll 8
                for (int w = 0; w < W; w++)
                    weights[w] = Product::pair(vld1q_u8(rows[2 * w] + k), vld1q_u8(rows[2 * w + 1] + k));
#pragma GCC unroll 8
                for (int i = 0; i < X; i++)
#pragma GCC unroll 8
                    for (int w = 0; w < W; w++) Product::add(sums[i][w], x[i], weights[w]);
            }
            if (rows[0] == rest[0] || num_rest == 0) break;
            // Once more for the rest, filled up with zeros: beyond a row lies the next, or what is not ours to read.
            for (int r = 0; r < 2 * W; r++) {
                std::copy_n(rows[r] + whole, num_rest, rest[r]);
                rows[r] = rest[r];
            }
        }
        for (int i = 0; i < X; i++)
            for (int w = 0; w < W; w++) out[i][w] = sums[i][w];
    }
};

#if defined(VL2_NEON_BF16)

// Rows of bfloat16 times rows of a weight in bfloat16.
class Bf16Rows {
   public:
    int64_t rows() const { return pairs_.rows(); }

    template <class RowAt>
    void pack(int64_t rows, int64_t channels, const RowAt& row_at) {
        pairs_.pack(rows, 2 * channels, [&](int64_t row) { return reinterpret_cast<const uint8_t*>(row_at(row)); });
    }

    // Outputs 0 to `outputs` of each row, to where `out_at` says of it; `stride` is in numbers.
    template <class OutAt>
    void multiply(const bf16* weight, int64_t stride, int64_t outputs, const OutAt& out_at) const {
        pairs_.multiply(reinterpret_cast<const uint8_t*>(weight), 2 * stride, outputs,
                        [&](int64_t pair, int64_t n, float32x4_t sums) {
                            float both[4];
                            vst1q_f32(both, sums);
                            const int64_t count = std::min<int64_t>(2, outputs - n);
                            std::copy_n(both, count, out_at(2 * pair) + n);
                            if (2 * pair + 1 < pairs_.rows()) std::copy_n(both + 2, count, out_at(2 * pair + 1) + n);
                        });
    }

   private:
    PackedPairs<Bf16Product> pairs_;
};

#endif

}  // namespace vl2
