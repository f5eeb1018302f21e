// The int8 experts of a prefill on the packed rows of gemm_blocks.h: with AVX-512, and with the matrix extensions of
// NEON.
//
// In: tasks, each some rows of one expert, and the weights of experts in int8. Out: the rows after the expert's gated
// MLP, rounded where the plain model rounds. Called by prefill_moe.h alone. What enters each product is quantized to 8
// bits, row by row. A row's result depends on that row alone.
#pragma once
#include <vector>

#include "gemm.h"
#include "row_ops.h"

namespace vl2 {

// The int8 experts of all tasks.
inline bool run_int8_experts(const ExpertRows& e, const std::vector<ExpertTask>& tasks, int threads) {
    parallel_for(static_cast<int64_t>(tasks.size()), threads, [&](int64_t task) {
        static thread_local Int8Input x, hidden;
        static thread_local std::vector<bf16> gate, up;
        const ExpertTask& t = tasks[task];
        const size_t size = std::max<size_t>(gate.size(), t.rows * e.hidden);
        gate.resize(size);
        up.resize(size);
        x.pack(t.rows, e.width, [&](int64_t row) { return e.token_at(t.first + row); });
        multiply_packed(x, product_of(e.gate.at(t.expert), nullptr, t.rows, 0, gate.data(), e.hidden));
        multiply_packed(x, product_of(e.up.at(t.expert), nullptr, t.rows, 0, up.data(), e.hidden));
        for (int64_t row = 0; row < t.rows; row++) {
            bf16* at = gate.data() + row * e.hidden;
            swiglu_row(at, up.data() + row * e.hidden, e.hidden, at);
        }
        hidden.pack(t.rows, e.hidden, [&](int64_t row) { return gate.data() + row * e.hidden; });
        bf16* out = e.out + t.first * e.width;
        multiply_packed(hidden, product_of(e.down.at(t.expert), nullptr, t.rows, 0, out, e.width));
    });
    return true;
}

}  // namespace vl2
