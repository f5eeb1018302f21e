// The product of gemm.h with the matrix extensions of NEON: bfloat16, or int8 in integers, for which the rows are
// quantized as they are packed.
//
// In and out as gemm.h says, which alone includes this; prefill_moe_neon.h uses `multiply_packed` by itself. Rows are
// packed once for all outputs of a task, in chunks that the second cache holds. Sums of integers are exact; what is made
// of them, and in which order, is int8.h's. A row's result depends on that row alone.
#pragma once
#include <algorithm>
#include <vector>

#include "int8.h"
#include "memory.h"
#include "packed_pairs_neon.h"
#include "threads.h"

namespace vl2 {

constexpr int64_t PACKED_BYTES = 1 << 18;  // of packed rows
constexpr int64_t BLOCK = 64;              // outputs whose sums are held before their epilogue

// Rows of bfloat16, packed.
class Bf16Input {
   public:
    template <class RowAt>
    void pack(int64_t rows, int64_t inputs, const RowAt& row_at) {
        rows_.pack(rows, inputs, row_at);
        sums_.resize(std::max<size_t>(sums_.size(), rows * BLOCK));
    }

    // Make the sums of all rows with up to BLOCK outputs from `first` on.
    void multiply(const RowsProduct& p, int64_t first, int64_t count) {
        const bf16* weight = static_cast<const bf16*>(p.weight) + first * p.inputs;
        rows_.multiply(weight, p.inputs, count, [&](int64_t row) { return &sums_[row * BLOCK]; });
    }

    // What a row's sums of outputs n to n + LANES become, before they are rounded.
    Floats value(const RowsProduct& p, int64_t row, int64_t first, int64_t n) const {
        const Floats bias = p.bias ? load(p.bias + first + n) : Floats{}, value = load(&sums_[row * BLOCK + n]) + bias;
        return p.activation ? activate(rounded(value), p.activation) : value;
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

    void multiply(const RowsProduct& p, int64_t first, int64_t count) {
        const uint8_t* weight = static_cast<const uint8_t*>(p.weight) + first * p.inputs;
        int32_t* to = sums_.data();
        pairs_.multiply(weight, p.inputs, count, [to](int64_t pair, int64_t n, int32x4_t sums) {
            vst1_s32(to + 2 * pair * BLOCK + n, vget_low_s32(sums));
            vst1_s32(to + (2 * pair + 1) * BLOCK + n, vget_high_s32(sums));
        });
    }

    Floats value(const RowsProduct& p, int64_t row, int64_t first, int64_t n) const {
        const Ints sums = (Ints)vld1q_s32(&sums_[row * BLOCK + n]);
        const Floats bias = p.bias ? load(p.bias + first + n) : Floats{};
        return dequantize_sum(sums, splat(scales_[row]), load(p.column_scales + first + n), bias, p.activation);
    }

   private:
    std::vector<int8_t> codes_;
    std::vector<float> scales_;
    PackedPairs<Int8Product> pairs_;
    AlignedVector<int32_t> sums_;
};

// Up to BLOCK outputs of packed rows, which are those of `p` from the first on; both multiples of LANES.
template <class Input>
void multiply_block(Input& x, const RowsProduct& p, int64_t rows, int64_t first, int64_t count) {
    x.multiply(p, first, count);
    for (int64_t row = 0; row < rows; row++) {
        const bf16* residual = p.residual ? p.residual + row * p.outputs + first : nullptr;
        bf16* to = p.out + row * p.out_stride + first;
        for (int64_t n = 0; n < count; n += LANES) {
            const Floats value = x.value(p, row, first, n);
            store(to + n, residual ? load(residual + n) + rounded(value) : value);
        }
    }
}

// All outputs of packed rows.
template <class Input>
void multiply_packed(Input& x, const RowsProduct& p) {
    for (int64_t first = 0; first < p.outputs; first += BLOCK)
        multiply_block(x, p, p.rows, first, std::min(BLOCK, p.outputs - first));
}

// `count` products of the same rows, which are those of the first. A task is some rows with some blocks of outputs of
// all products: several tasks a thread, so that all threads end together.
template <class Input>
void multiply_rows(const RowsProduct* products, int64_t count, int64_t bytes, int threads) {
    const RowsProduct& all = *products;
    const auto blocks_of = [](const RowsProduct& p) { return (p.outputs + BLOCK - 1) / BLOCK; };
    int64_t blocks = 0;  // of all products, one behind another
    for (int64_t i = 0; i < count; i++) blocks += blocks_of(products[i]);
    const int64_t at_once = std::clamp<int64_t>(PACKED_BYTES / bytes / 16 * 16, 16, 256);
    const int64_t chunks = (all.rows + at_once - 1) / at_once;
    const int64_t splits = std::clamp<int64_t>((4 * threads + chunks - 1) / chunks, 1, blocks);
    parallel_for(chunks * splits, threads, [&](int64_t task) {
        static thread_local Input x;
        const int64_t first_row = task / splits * at_once, rows = std::min(at_once, all.rows - first_row);
        const int64_t split = task % splits;
        const auto row_at = [&](int64_t row) { return all.x + (first_row + row) * all.x_stride; };
        x.pack(rows, all.inputs, row_at);
        int64_t begin = 0;  // of a product's blocks, among all
        for (int64_t i = 0; i < count; begin += blocks_of(products[i++])) {
            RowsProduct part = products[i];
            part.out += first_row * part.out_stride;
            if (part.residual) part.residual += first_row * part.outputs;
            const int64_t last = std::min((split + 1) * blocks / splits - begin, blocks_of(part));
            for (int64_t block = std::max<int64_t>(split * blocks / splits - begin, 0); block < last; block++)
                multiply_block(x, part, rows, block * BLOCK, std::min(BLOCK, part.outputs - block * BLOCK));
        }
    });
}

// Whether the shapes were within what the kernel does; nothing is written where they were not. Weights are of one kind.
inline bool multiply_rows_in_tiles(const RowsProduct* products, int64_t count, int threads) {
    const RowsProduct& p = *products;
    if (p.rows < 1 || p.inputs < 1) return false;
    int64_t outputs = 0;
    for (int64_t i = 0; i < count; i++) {
        if (products[i].outputs % LANES || products[i].kind != p.kind || products[i].inputs != p.inputs) return false;
        outputs += products[i].outputs;
    }
    const int64_t weights = outputs * p.inputs, bytes = p.inputs * (p.kind == INT8 ? 1 : 2);
    threads = useful_threads(threads, outputs * bytes, weights * p.rows);
    if (p.kind == INT8) multiply_rows<Int8Input>(products, count, bytes, threads);
    else if (p.kind == BF16) multiply_rows<Bf16Input>(products, count, bytes, threads);
    else return false;
    return true;
}

}  // namespace vl2
