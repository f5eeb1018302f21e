// Rows packed for the matrix extensions of NEON, and their sums with some outputs of a weight: bfloat16, or int8 in
// integers, for which the rows are quantized as they are packed.
//
// Included by gemm.h alone, for gemm_blocks.h. Rows are packed once for all outputs of a task. Sums of integers are
// exact; what is made of them, and in which order, is int8.h's. A row's result depends on that row alone.
#pragma once
#include <algorithm>
#include <vector>

#include "int8.h"
#include "memory.h"
#include "packed_pairs_neon.h"

namespace vl2 {

constexpr int64_t BLOCK = 64;        // outputs whose sums are held before their epilogue
constexpr int64_t SUMMED_ROWS = 16;  // rows that are summed at once
constexpr int64_t BF16_INPUTS = 1;   // the number of bfloat16 inputs must be a multiple of this

// Rows of a task, of so many bytes each: packed, the second cache holds them.
inline int64_t most_rows(int64_t bytes) { return std::clamp<int64_t>((1 << 18) / bytes / 16 * 16, 16, 256); }

// Rows of bfloat16, packed.
class Bf16Input {
   public:
    template <class RowAt>
    void pack(int64_t rows, int64_t inputs, const RowAt& row_at) {
        rows_.pack(rows, inputs, row_at);
        sums_.resize(std::max<size_t>(sums_.size(), rows * BLOCK));
    }

    // Make the sums of all rows with up to BLOCK outputs from `first` on; then `finish(begin, end)` is called for rows
    // whose sums are made.
    template <class Finish>
    void multiply(const RowsProduct& p, int64_t first, int64_t count, const Finish& finish) {
        const bf16* weight = static_cast<const bf16*>(p.weight) + first * p.inputs;
        rows_.multiply(weight, p.inputs, count, [&](int64_t row) { return &sums_[row * BLOCK]; });
        finish(0, rows_.rows());
    }

    // What is one for all rows of LANES outputs from first + n on.
    Floats outputs(const RowsProduct& p, int64_t first, int64_t n) const {
        return p.bias ? load(p.bias + first + n) : Floats{};
    }

    // What a row's sums with these outputs become, before they are rounded.
    Floats value(Floats bias, int64_t row, int64_t n, int64_t activation) const {
        const Floats value = load(&sums_[row * BLOCK + n]) + bias;
        return activation ? activate(rounded(value), activation) : value;
    }

   private:
    Bf16Rows rows_;
    AlignedVector<float> sums_;
};

// Rows of bfloat16 rounded to 8 bits, packed. The same methods.
class Int8Input {
   public:
    template <class RowAt>
    void pack(int64_t rows, int64_t inputs, const RowAt& row_at) {
        codes_.resize(std::max<size_t>(codes_.size(), rows * inputs));
        scales_.resize(rows);
        for (int64_t row = 0; row < rows; row++)
            scales_[row] = to_int8_row(row_at(row), inputs, codes_.data() + row * inputs);
        const uint8_t* codes = reinterpret_cast<const uint8_t*>(codes_.data());
        pairs_.pack(rows, inputs, [&](int64_t row) { return codes + row * inputs; });
        sums_.resize(std::max<size_t>(sums_.size(), round_up(rows, 2) * BLOCK));
    }

    template <class Finish>
    void multiply(const RowsProduct& p, int64_t first, int64_t count, const Finish& finish) {
        const uint8_t* weight = static_cast<const uint8_t*>(p.weight) + first * p.inputs;
        int32_t* to = sums_.data();
        pairs_.multiply(weight, p.inputs, count, [to](int64_t pair, int64_t n, int32x4_t sums) {
            vst1_s32(to + 2 * pair * BLOCK + n, vget_low_s32(sums));
            vst1_s32(to + (2 * pair + 1) * BLOCK + n, vget_high_s32(sums));
        });
        finish(0, pairs_.rows());
    }

    struct Outputs {
        Floats scales, bias;
    };

    Outputs outputs(const RowsProduct& p, int64_t first, int64_t n) const {
        return {load(p.column_scales + first + n), p.bias ? load(p.bias + first + n) : Floats{}};
    }

    Floats value(const Outputs& outputs, int64_t row, int64_t n, int64_t activation) const {
        const Ints sums = (Ints)vld1q_s32(&sums_[row * BLOCK + n]);
        return dequantize_sum(sums, splat(scales_[row]), outputs.scales, outputs.bias, activation);
    }

   private:
    std::vector<int8_t> codes_;
    std::vector<float> scales_;
    PackedPairs<Int8Product> pairs_;
    AlignedVector<int32_t> sums_;
};

}  // namespace vl2
