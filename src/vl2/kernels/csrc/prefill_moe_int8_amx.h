// The int8 experts of a prefill, both products in integers in tile registers.
//
// In: tasks, each some rows of one expert, and int8 weights with a scale for each output. Out: the rows after the
// expert's gated MLP. Called by prefill_moe.h alone. What enters each of the two products is quantized to 8 bits, row
// by row: twice as many numbers fit a tile as of bfloat16, and no code is dequantized. A row's result depends on that
// row alone.
#pragma once
#include <algorithm>
#include <vector>

#include "gemm.h"
#include "row_ops.h"

namespace vl2 {

// Tokens, each rounded once for all the experts that it visits, in memory that the calling thread keeps.
struct Int8Tokens {
    Int8Tokens(const bf16* x, int64_t tokens, int64_t width, int threads) : width(width) {
        static thread_local std::vector<int8_t> kept_codes;
        static thread_local std::vector<float> kept_scales;
        kept_codes.resize(std::max<size_t>(kept_codes.size(), tokens * width));
        kept_scales.resize(std::max<size_t>(kept_scales.size(), tokens));
        to_int8_rows(x, tokens, width, kept_codes.data(), kept_scales.data(), threads);
        codes = kept_codes.data();
        scales = kept_scales.data();
    }
    const int64_t width;
    const int8_t* codes;
    const float* scales;
};

// A gated MLP of int8 matrices.
struct Int8Expert {
    Matrix gate, up, down;

    // Rows of tokens, each the one that `token_of` says.
    template <class TokenOf>
    void run(const Int8Tokens& tokens, int64_t rows, const TokenOf& token_of, bf16* out) const {
        static thread_local std::vector<bf16> gate_out, up_out;
        static thread_local std::vector<float> scales;
        const int64_t hidden = gate.outputs;
        const size_t size = std::max<size_t>(gate_out.size(), rows * hidden);
        gate_out.resize(size);
        up_out.resize(size);
        scales.resize(rows);
        const TileRegisters registers;
        const RowsInTiles x(rows, gate.inputs);
        for (int64_t v = 0; v < x.vectors; v++)
            x.pack(v, [&](int64_t row) { return tokens.codes + token_of(row) * tokens.width; });
        for (int64_t r = 0; r < rows; r++) scales[r] = tokens.scales[token_of(r)];
        multiply(x, gate, scales.data(), gate_out.data(), false);
        multiply(x, up, scales.data(), up_out.data(), false);
        for (int64_t r = 0; r < rows; r++) {
            bf16* row = gate_out.data() + r * hidden;
            swiglu_row(row, up_out.data() + r * hidden, hidden, row);
        }
        const RowsInTiles h(rows, hidden);  // in the place of x, which is not needed any more
        for (int64_t v = 0; v < h.vectors; v++) h.round(v, gate_out.data(), hidden, scales.data());
        multiply(h, down, scales.data(), out, true);
    }

   private:
    static void multiply(const RowsInTiles& x, const Matrix& w, const float* row_scales, bf16* out, bool nontemporal) {
        const RowsProduct p = product_of(w, nullptr, x.rows, 0, out, w.outputs);
        ProductInTiles<int8_t> product(p, x, row_scales, nontemporal);
        for (int64_t first = 0; first < w.outputs; first += BLOCK)
            product.multiply(first, product.rows_from(first + BLOCK));
    }
};

// The int8 experts of all tasks.
inline bool run_int8_experts(const ExpertRows& e, const std::vector<ExpertTask>& tasks, int threads) {
    const Int8Tokens tokens(e.x, e.tokens, e.width, threads);
    parallel_for(static_cast<int64_t>(tasks.size()), threads, [&](int64_t task) {
        const ExpertTask& t = tasks[task];
        const Int8Expert expert{e.gate.at(t.expert), e.up.at(t.expert), e.down.at(t.expert)};
        expert.run(tokens, t.rows, [&](int64_t row) { return e.token_of(t.first + row); }, e.out + t.first * e.width);
    });
    return true;
}

}  // namespace vl2
