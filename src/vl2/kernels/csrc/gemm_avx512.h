// Rows of activations, and their sums with some outputs of a weight, with AVX-512: bfloat16, or int8 in integers, for
// which the rows are quantized first.
//
// Included by gemm.h alone, for gemm_blocks.h. Lanes are outputs: 64 rows of a weight are packed so that sixteen of them
// lie beside one another, four bytes of each, as the dot products take them, and four bytes of an input are broadcast
// over them. Some channels of a weight are packed at a time, which the second cache holds while all rows of the task go
// over them. A row's sums are added up in the order of its channels and depend on that row alone; those of int8 are
// exact.
#pragma once
#include <algorithm>
#include <vector>

#include "int8.h"
#include "memory.h"

namespace vl2 {

constexpr int64_t BLOCK = 4 * LANES;   // outputs that are summed at once
constexpr int64_t BF16_INPUTS = 2;     // the number of bfloat16 inputs must be a multiple of this
constexpr int64_t SUMMED_ROWS = 6;     // rows that are summed at once: 24 of 32 registers are sums
constexpr int64_t PANEL_BYTES = 4096;  // most that is packed at a time of one output's weights: 256 KB of a block

// Rows of a task: packing a block of a weight takes as long as multiplying some five rows by it.
inline int64_t most_rows(int64_t) { return 84 * SUMMED_ROWS; }

// Pack `bytes` bytes of up to 64 rows of a weight, a multiple of 16 of them, as [word][row].
inline void pack_outputs(const uint8_t* weight, int64_t stride, int64_t outputs, int64_t bytes, uint32_t* to) {
    for (int64_t n = 0; n < outputs; n += LANES, to += LANES)
        for (int64_t k = 0; k < bytes; k += LINE_BYTES) {
            const int64_t left = bytes - k;
            const __mmask64 kept = left < 64 ? (uint64_t(1) << left) - 1 : ~uint64_t(0);
            __m512i words[LANES];
            for (int64_t i = 0; i < LANES; i++)
                words[i] = _mm512_maskz_loadu_epi8(kept, weight + (n + i) * stride + k);
            transpose(words);
            for (int64_t i = 0; i < std::min<int64_t>(LANES, (left + 3) / 4); i++)
                _mm512_store_si512(to + (k / 4 + i) * outputs, words[i]);
        }
}

// Four bytes of an input with those of sixteen outputs.
struct Bf16Dot {
    using Sums = __m512;
    static Sums add(Sums sums, __m512i x, __m512i w) { return _mm512_dpbf16_ps(sums, (__m512bh)x, (__m512bh)w); }
    static Sums load(const void* from) { return _mm512_load_ps(from); }
    static void store(void* to, Sums sums) { _mm512_store_ps(to, sums); }
};

// Inputs are bytes without sign, 128 more than their codes.
struct Int8Dot {
    using Sums = __m512i;
    static Sums add(Sums sums, __m512i x, __m512i w) { return _mm512_dpbusd_epi32(sums, x, w); }
    static Sums load(const void* from) { return _mm512_load_si512(from); }
    static void store(void* to, Sums sums) { _mm512_store_si512(to, sums); }
};

// `words` words of M rows, from byte `first` on, with V vectors of packed outputs: their sums, or added to those that are
// there, BLOCK from one row to the next. Not inlined: beside other code the compiler would not keep the sums in
// registers.
template <class Dot, int M, int V>
__attribute__((noinline)) void multiply_tile(const uint8_t* const* x, int64_t first, const uint32_t* panel,
                                             int64_t words, uint32_t* sums, bool is_added) {
    typename Dot::Sums acc[M][V];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            acc[m][v] = is_added ? Dot::load(sums + m * BLOCK + v * LANES) : typename Dot::Sums{};
    const uint8_t* rows[M];
    for (int m = 0; m < M; m++) rows[m] = x[m] + first;
    for (int64_t k = 0; k < words; k++, panel += V * LANES) {
        __m512i w[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) w[v] = _mm512_load_si512(panel + v * LANES);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            int32_t word;
            std::memcpy(&word, rows[m] + 4 * k, 4);
            const __m512i spread = _mm512_set1_epi32(word);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) acc[m][v] = Dot::add(acc[m][v], spread, w[v]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) Dot::store(sums + m * BLOCK + v * LANES, acc[m][v]);
}

// Rows of bytes, a multiple of four of them, and their sums with up to BLOCK outputs.
template <class Dot>
class RowSums {
   public:
    template <class RowAt>
    void set_rows(int64_t rows, int64_t bytes, const RowAt& row_at) {
        bytes_ = bytes;
        rows_.resize(rows);
        for (int64_t row = 0; row < rows; row++) rows_[row] = row_at(row);
        sums_.resize(std::max<size_t>(sums_.size(), rows * BLOCK));
        panel_.resize(BLOCK * PANEL_BYTES / 4);
    }

    // `count` outputs of `p` from `first` on, whose rows of the weight have `stride` bytes. `see(panel, words)` is called
    // with each part of the weight that was packed, and `finish(begin, end)` for rows whose sums are made.
    template <class See, class Finish>
    void multiply(const RowsProduct& p, int64_t first, int64_t stride, int64_t count, const See& see,
                  const Finish& finish) {
        const uint8_t* weight = static_cast<const uint8_t*>(p.weight) + first * stride;
        const int64_t parts = (bytes_ + PANEL_BYTES - 1) / PANEL_BYTES;
        const int64_t at_once = round_up((bytes_ + parts - 1) / parts, LINE_BYTES);
        const int64_t rows = static_cast<int64_t>(rows_.size());
        for (int64_t k = 0; k < bytes_; k += at_once) {
            const int64_t words = std::min(at_once, bytes_ - k) / 4;
            pack_outputs(weight + k, stride, count, std::min(4 * words, stride - k), panel_.data());
            see(panel_.data(), words);
            for (int64_t row = 0; row < rows; row += SUMMED_ROWS) {
                const int64_t some = std::min(SUMMED_ROWS, rows - row);
                const bool is_last = k + at_once >= bytes_;
                if (is_last) prefetch_outputs(p, row, some, first, count);
                multiply_rows(row, some, count, k, words);
                if (is_last) finish(row, row + some);
            }
        }
    }

    const void* at(int64_t row, int64_t n) const { return &sums_[row * BLOCK + n]; }

   private:
    int64_t bytes_ = 0;
    std::vector<const uint8_t*> rows_;
    AlignedVector<uint32_t> sums_, panel_;

    void multiply_rows(int64_t row, int64_t rows, int64_t outputs, int64_t k, int64_t words) {
        with_constant<BLOCK / LANES>(outputs / LANES, [&](auto vectors) {
            with_constant<SUMMED_ROWS>(rows, [&](auto count) {
                multiply_tile<Dot, count.value, vectors.value>(&rows_[row], k, panel_.data(), words,
                                                               &sums_[row * BLOCK], k > 0);
            });
        });
    }

    // What is written next, and what it is added to, would be waited for.
    static void prefetch_outputs(const RowsProduct& p, int64_t row, int64_t rows, int64_t first, int64_t count) {
        for (int64_t m = row; m < row + rows; m++)
            for (int64_t n = first; n < first + count; n += LINE_BYTES / 2) {
                __builtin_prefetch(p.out + m * p.out_stride + n, 1, 2);
                if (p.residual) __builtin_prefetch(p.residual + m * p.outputs + n, 0, 2);
            }
    }
};

// Rows of bfloat16, where they lie.
class Bf16Input {
   public:
    template <class RowAt>
    void pack(int64_t rows, int64_t inputs, const RowAt& row_at) {
        sums_.set_rows(rows, 2 * inputs, [&](int64_t row) { return reinterpret_cast<const uint8_t*>(row_at(row)); });
    }

    // Make the sums of all rows with up to BLOCK outputs from `first` on; then `finish(begin, end)` is called for rows
    // whose sums are made.
    template <class Finish>
    void multiply(const RowsProduct& p, int64_t first, int64_t count, const Finish& finish) {
        sums_.multiply(p, first, 2 * p.inputs, count, [](const uint32_t*, int64_t) {}, finish);
    }

    // What is one for all rows of LANES outputs from first + n on.
    Floats outputs(const RowsProduct& p, int64_t first, int64_t n) const {
        return p.bias ? load(p.bias + first + n) : Floats{};
    }

    // What a row's sums with these outputs become, before they are rounded.
    Floats value(Floats bias, int64_t row, int64_t n, int64_t activation) const {
        const Floats value = (Floats)_mm512_load_ps(sums_.at(row, n)) + bias;
        return activation ? activate(rounded(value), activation) : value;
    }

   private:
    RowSums<Bf16Dot> sums_;
};

// Rows of bfloat16 rounded to 8 bits. The same methods.
class Int8Input {
   public:
    template <class RowAt>
    void pack(int64_t rows, int64_t inputs, const RowAt& row_at) {
        const int64_t bytes = round_up(inputs, 4);
        codes_.resize(std::max<size_t>(codes_.size(), rows * bytes));
        scales_.resize(rows);
        for (int64_t row = 0; row < rows; row++) {
            int8_t* codes = codes_.data() + row * bytes;
            scales_[row] = to_int8_row(row_at(row), inputs, codes);
            for (int64_t k = 0; k < inputs; k++) codes[k] ^= -128;  // 128 more, as a byte without sign
            std::fill(codes + inputs, codes + bytes, 0);
        }
        const uint8_t* codes = reinterpret_cast<const uint8_t*>(codes_.data());
        sums_.set_rows(rows, bytes, [&](int64_t row) { return codes + row * bytes; });
    }

    template <class Finish>
    void multiply(const RowsProduct& p, int64_t first, int64_t count, const Finish& finish) {
        std::fill_n(weight_sums_, BLOCK, 0);
        const auto add_weights = [&](const uint32_t* panel, int64_t words) {
            for (int64_t n = 0; n < count; n += LANES) {
                __m512i sums = _mm512_load_si512(weight_sums_ + n);
                for (int64_t k = 0; k < words; k++)
                    sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), _mm512_load_si512(panel + k * count + n));
                _mm512_store_si512(weight_sums_ + n, sums);
            }
        };
        sums_.multiply(p, first, p.inputs, count, add_weights, finish);
    }

    struct Outputs {
        Floats scales, bias;
        __m512i more;  // of the 128 in each code
    };

    Outputs outputs(const RowsProduct& p, int64_t first, int64_t n) const {
        return {load(p.column_scales + first + n), p.bias ? load(p.bias + first + n) : Floats{},
                _mm512_slli_epi32(_mm512_load_si512(weight_sums_ + n), 7)};
    }

    Floats value(const Outputs& outputs, int64_t row, int64_t n, int64_t activation) const {
        const Ints sums = (Ints)_mm512_sub_epi32(_mm512_load_si512(sums_.at(row, n)), outputs.more);
        return dequantize_sum(sums, splat(scales_[row]), outputs.scales, outputs.bias, activation);
    }

   private:
    std::vector<int8_t> codes_;
    std::vector<float> scales_;
    RowSums<Int8Dot> sums_;
    alignas(LINE_BYTES) int32_t weight_sums_[BLOCK];
};

}  // namespace vl2
