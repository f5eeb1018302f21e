// The experts of a prefill and its router with the matrix extensions of NEON.
//
// In: tasks, each some rows of one expert, and the weights of experts in bfloat16 or int4. Out: the rows after the
// expert's gated MLP, rounded where the plain model rounds. Called by prefill_moe.h alone. The rows of a task are packed
// once; sixteen rows of a weight are read once for up to 256 rows, and codes of int4 made bfloat16 once. A row's
// result depends on that row alone.
#pragma once
#include <algorithm>
#include <vector>

#include "gemm.h"
#include "int4.h"
#include "row_ops.h"

namespace vl2 {

// What a thread keeps from one task to the next.
struct ExpertWorkspace {
    Bf16Rows x, hidden;
    AlignedVector<bf16> activated, scratch[2];  // hidden channels; two panels of int4 made bfloat16
    AlignedVector<float> sums[2];               // [rows][PANEL]
};

// Sixteen rows of an expert's weight from a multiple of sixteen on: where they lie, or int4 made bfloat16 in `scratch`.
inline const bf16* panel_at(const Stack& stack, int64_t expert, int64_t first, AlignedVector<bf16>& scratch) {
    const Matrix w = stack.at(expert);
    if (w.kind == BF16) return reinterpret_cast<const bf16*>(w.codes) + first * w.inputs;
    const int64_t groups = w.groups();
    scratch.resize(std::max<size_t>(scratch.size(), PANEL * w.inputs));
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(w.scales) + first * groups;
    dequantize_panel(w.codes + first / PANEL * groups * BLOCK_BYTES, scales, groups, scratch.data());
    return scratch.data();
}

// The rows of one task through the gated MLP of their expert.
inline void run_float_expert(const ExpertRows& e, const ExpertTask& task, ExpertWorkspace& w) {
    w.x.pack(task.rows, e.width, [&](int64_t row) { return e.token_at(task.first + row); });
    w.activated.resize(std::max<size_t>(w.activated.size(), task.rows * e.hidden));
    for (AlignedVector<float>& sums : w.sums) sums.resize(std::max<size_t>(sums.size(), task.rows * PANEL));
    float *gate = w.sums[0].data(), *up = w.sums[1].data();
    for (int64_t f = 0; f < e.hidden; f += PANEL) {
        w.x.multiply(panel_at(e.gate, task.expert, f, w.scratch[0]), e.width, PANEL,
                     [&](int64_t row) { return gate + row * PANEL; });
        w.x.multiply(panel_at(e.up, task.expert, f, w.scratch[1]), e.width, PANEL,
                     [&](int64_t row) { return up + row * PANEL; });
        for (int64_t row = 0; row < task.rows; row++)
            for (int64_t i = row * PANEL; i < (row + 1) * PANEL; i += LANES) {
                const Floats activated = rounded(fast_silu(rounded(load(gate + i)))) * rounded(load(up + i));
                store_fast(&w.activated[row * e.hidden + f + i - row * PANEL], activated);
            }
    }
    w.hidden.pack(task.rows, e.hidden, [&](int64_t row) { return &w.activated[row * e.hidden]; });
    for (int64_t n = 0; n < e.width; n += PANEL) {
        w.hidden.multiply(panel_at(e.down, task.expert, n, w.scratch[0]), e.hidden, PANEL,
                          [&](int64_t row) { return gate + row * PANEL; });
        for (int64_t row = 0; row < task.rows; row++)
            for (int64_t i = 0; i < PANEL; i += LANES)
                store_fast(e.out + (task.first + row) * e.width + n + i, load(gate + row * PANEL + i));
    }
}

// The bfloat16 or int4 experts of all tasks.
inline bool run_float_experts(const ExpertRows& e, const std::vector<ExpertTask>& tasks, int threads) {
    parallel_for(static_cast<int64_t>(tasks.size()), threads, [&](int64_t task) {
        static thread_local ExpertWorkspace workspace;
        run_float_expert(e, tasks[task], workspace);
    });
    return true;
}

// Logits [tokens, experts] in float32. Whether the shape was within what the kernel does: every shape is.
inline bool router_logits(const bf16* x, int64_t tokens, int64_t width, const bf16* weight, int64_t experts, float* out,
                          int threads) {
    constexpr int64_t AT_ONCE = 64;
    parallel_for((tokens + AT_ONCE - 1) / AT_ONCE, threads, [&](int64_t task) {
        static thread_local Bf16Rows rows;
        const int64_t first = task * AT_ONCE;
        rows.pack(std::min(AT_ONCE, tokens - first), width, [&](int64_t row) { return x + (first + row) * width; });
        rows.multiply(weight, width, experts, [&](int64_t row) { return out + (first + row) * experts; });
    });
    return true;
}

}  // namespace vl2
