// The mixture of experts of a prefill: router logits, the experts of each token, rows sorted by expert, their gated
// MLPs.
//
// In: bfloat16 tokens [tokens, width] after a norm, the router's and the experts' weights. Out: logits, indices and
// weights [tokens, K] of the chosen experts, and the experts' rows, which `combine_experts` of row_ops.h adds up.
// Callers are kernels.cpp, for layers that Python runs one step at a time, and fused_prefill.h. Choosing and sorting
// are portable; logits and MLPs need AVX-512 (prefill_moe_avx512.h) or the matrix extensions of NEON
// (prefill_moe_neon.h): without them the functions return false, and Python's own are used.
#pragma once
#include <algorithm>
#include <vector>

#include "matmul.h"
#include "model.h"
#include "threads.h"

namespace vl2 {

// Held the same in Python, as a ctypes structure.
struct ExpertRows {
    const bf16* x;          // [tokens, width]
    int64_t tokens;
    const int64_t* token;   // [rows], sorted by expert: the token of each; null: the tokens in their order
    const int64_t* counts;  // [experts], rows of each
    int64_t experts, width, hidden;
    Stack gate, up, down;   // [hidden, width] twice and [width, hidden]
    bf16* out;              // [rows, width]

    int64_t token_of(int64_t row) const { return token ? token[row] : row; }
    const bf16* token_at(int64_t row) const { return x + token_of(row) * width; }
};

// Some rows of one expert, which one thread takes through its MLP.
struct ExpertTask {
    int64_t expert, first, rows;
};

}  // namespace vl2

#if defined(VL2_AVX512)
#include "prefill_moe_avx512.h"
#elif defined(VL2_NEON_BF16)
#include "prefill_moe_neon.h"
#else

namespace vl2 {

inline bool router_logits(const bf16*, int64_t, int64_t, const bf16*, int64_t, float*, int) { return false; }
inline bool run_float_experts(const ExpertRows&, const std::vector<ExpertTask>&, int) { return false; }

}  // namespace vl2
#endif

#if defined(VL2_AMX)
#include "prefill_moe_int8_amx.h"
#elif defined(VL2_AVX512) || defined(VL2_NEON_BF16)
#include "prefill_moe_int8.h"
#else

namespace vl2 {

inline bool run_int8_experts(const ExpertRows&, const std::vector<ExpertTask>&, int) { return false; }

}  // namespace vl2
#endif

namespace vl2 {

// Sixteen rows are a vector of AVX-512, and there are up to so many vectors in one task: what is read of a weight, and
// dequantized of int4, serves 256 rows. With twelve a prompt takes 2 % longer.
constexpr int64_t VECTOR_ROWS = 16, MOST_VECTORS = 16;

// The rows of all experts as tasks, the longest first, for all threads to be done at the same time.
inline std::vector<ExpertTask> expert_tasks(const ExpertRows& e, int threads) {
    std::vector<ExpertTask> tasks;
    for (int64_t expert = 0, first = 0; expert < e.experts; first += e.counts[expert++]) {
        const int64_t vectors = (e.counts[expert] + VECTOR_ROWS - 1) / VECTOR_ROWS;
        int64_t parts = (vectors + MOST_VECTORS - 1) / MOST_VECTORS;
        // One MLP for all rows gives every thread the same.
        if (e.experts == 1) parts = std::min(vectors, round_up(parts, threads));
        for (int64_t part = 0; part < parts; part++) {
            const int64_t row = part * vectors / parts * VECTOR_ROWS;
            const int64_t end = (part + 1) * vectors / parts * VECTOR_ROWS;
            tasks.push_back({expert, first + row, std::min(end, e.counts[expert]) - row});
        }
    }
    std::stable_sort(tasks.begin(), tasks.end(),
                     [](const ExpertTask& a, const ExpertTask& b) { return a.rows > b.rows; });
    return tasks;
}

// Every row through the gated MLP of its expert. Whether the shape was within what the kernel does; nothing is written
// where it was not.
inline bool run_experts(const ExpertRows& e, int threads) {
    const bool is_int8 = e.gate.first.kind == INT8;
    if (!(is_int8 ? HAS_ROW_PRODUCTS : HAS_BF16_PRODUCTS) || e.width % 32 || e.hidden % 32) return false;
    int64_t used = 0, rows = 0;
    for (int64_t expert = 0; expert < e.experts; expert++) {
        used += e.counts[expert] > 0;
        rows += e.counts[expert];
    }
    const int64_t bytes = used * e.hidden * (e.gate.first.bytes_per_output() + e.up.first.bytes_per_output());
    const std::vector<ExpertTask> tasks = expert_tasks(e, threads);
    threads = useful_threads(threads, bytes, rows * 3 * e.width * e.hidden);
    return is_int8 ? run_int8_experts(e, tasks, threads) : run_float_experts(e, tasks, threads);
}

// The indices of the largest scores of each row, the largest first; of equal ones the first. There are `width` scores
// in a row, and no more are wanted. Of numbers that are none, or infinite, it is some index of the row.
inline void topk(const float* scores, int64_t rows, int64_t width, int64_t wanted, int64_t* indices, int threads) {
    constexpr int64_t ROWS = 32;
    const int64_t padded_width = round_up(width, LANES);
    parallel_for((rows + ROWS - 1) / ROWS, threads, [&](int64_t task) {
        static thread_local std::vector<float> remaining;
        remaining.assign(padded_width, -INFINITY);
        for (int64_t row = task * ROWS; row < std::min(rows, (task + 1) * ROWS); row++) {
            std::copy(scores + row * width, scores + (row + 1) * width, remaining.begin());
            for (int64_t k = 0; k < wanted; k++) {
                Floats largest_lanes = load(remaining.data());
                for (int64_t n = LANES; n < padded_width; n += LANES) {
                    const Floats some = load(&remaining[n]);
                    largest_lanes = some > largest_lanes ? some : largest_lanes;
                }
                float largest = largest_lanes[0];
                for (int i = 1; i < LANES; i++) largest = std::max(largest, largest_lanes[i]);
                const int64_t index =
                    std::find(remaining.begin(), remaining.begin() + width - 1, largest) - remaining.begin();
                remaining[index] = -INFINITY;
                indices[row * wanted + k] = index;
            }
        }
    });
}

// Logits [tokens, experts] as scores, in place: softmax, or each by itself.
inline void to_scores(float* logits, int64_t tokens, int64_t experts, bool is_sigmoid, int threads) {
    constexpr int64_t ROWS = 32;
    const int64_t padded_experts = round_up(experts, LANES);
    parallel_for((tokens + ROWS - 1) / ROWS, threads, [&](int64_t task) {
        static thread_local std::vector<float> row;
        row.resize(padded_experts);
        for (int64_t t = task * ROWS; t < std::min(tokens, (task + 1) * ROWS); t++) {
            float* scores = logits + t * experts;
            std::fill(std::copy(scores, scores + experts, row.begin()), row.end(), -INFINITY);
            if (is_sigmoid) {
                for (int64_t e = 0; e < padded_experts; e += LANES) store(&row[e], logistic(load(&row[e])));
            } else {
                const Floats largest = splat(*std::max_element(scores, scores + experts));
                Floats sums = {};
                for (int64_t e = 0; e < padded_experts; e += LANES) {
                    const Floats power = exponential(load(&row[e]) - largest);
                    store(&row[e], power);
                    sums += power;
                }
                const Floats total = splat(sum(sums));
                for (int64_t e = 0; e < padded_experts; e += LANES) store(&row[e], load(&row[e]) / total);
            }
            std::copy(row.begin(), row.begin() + experts, scores);
        }
    });
}

// What a router says of the tokens of a prefill, from logits [tokens, experts], which become scores: the best by score
// and bias, which may be null, and what each of them weighs, [tokens, best].
inline void choose_experts_of_all(const Model& model, const float* bias, int64_t tokens, float* logits, int64_t* chosen,
                                  float* weights, int threads) {
    const int64_t E = model.experts, K = model.experts_per_token;
    to_scores(logits, tokens, E, model.is_sigmoid, threads);
    std::vector<float> ranked;
    if (bias) {
        ranked.assign(logits, logits + tokens * E);
        for (int64_t i = 0; i < tokens * E; i++) ranked[i] += bias[i % E];
    }
    topk(bias ? ranked.data() : logits, tokens, E, K, chosen, threads);
    for (int64_t t = 0; t < tokens; t++) {
        float total = 0;
        for (int64_t i = t * K; i < (t + 1) * K; i++) total += weights[i] = logits[t * E + chosen[i]];
        for (int64_t i = t * K; i < (t + 1) * K; i++) {
            if (model.is_normalized && K > 1) weights[i] /= total + 1e-20f;
            weights[i] *= static_cast<float>(model.routed_scale);
        }
    }
}

// Slots [tokens, slots], each of an expert, as rows sorted by expert and then in their order: the token of each row,
// the row of each slot, and how many rows each expert has.
inline void sort_by_expert(const int64_t* expert, int64_t tokens, int64_t slots, int64_t experts, int64_t* token_index,
                           int64_t* row_index, int64_t* counts) {
    std::fill(counts, counts + experts, 0);
    for (int64_t i = 0; i < tokens * slots; i++) counts[expert[i]]++;
    std::vector<int64_t> next(experts);
    for (int64_t e = 1; e < experts; e++) next[e] = next[e - 1] + counts[e - 1];
    for (int64_t i = 0; i < tokens * slots; i++) {
        row_index[i] = next[expert[i]]++;
        token_index[row_index[i]] = i / slots;
    }
}

}  // namespace vl2
