// What a router does for the tokens of a prefill: the logits of its experts, the largest scores, and slots sorted by expert.
#pragma once
#include <algorithm>
#include <vector>

#include "expert_rows.h"
#include "model.h"

namespace vl2 {

#if defined(__AVX512BF16__) && defined(__AVX512BW__)

constexpr int64_t SCORED_VECTORS = 6;  // of sixteen tokens each, at once

// Logits [tokens, experts] in float32. Whether the shape was within what the kernel does; nothing is written where it was
// not.
inline bool router_logits(const bf16* x, int64_t tokens, int64_t width, const bf16* weight, int64_t experts, float* out,
                          int threads) {
    if (width % 32) return false;
    // Experts up to a whole number of pairs of blocks: of those behind the last nothing is written.
    std::vector<bf16> padded;
    if (experts % (2 * LANES)) {
        padded.resize(round_up(experts, 2 * LANES) * width);
        std::copy(weight, weight + experts * width, padded.begin());
        weight = padded.data();
    }
    ExpertRows rows{};
    rows.x = x;
    rows.width = width;
    run_team(threads, [&](Team& team, int) {
        int phase = 0;
        constexpr int64_t AT_ONCE = SCORED_VECTORS * LANES;
        team.each((tokens + AT_ONCE - 1) / AT_ONCE, phase, [&](int64_t task) {
            static thread_local Tiles tiles;
#if defined(__AMX_BF16__)
            const TileRegisters registers;
#endif
            const int64_t first = task * AT_ONCE, count = std::min(AT_ONCE, tokens - first);
            pack_rows(rows, first, count, tiles, [] {});
            with_vectors(tiles.vectors(0), [&](auto vectors) {
                constexpr int V = vectors.value;
                for (int64_t expert = 0; expert < experts; expert += 2 * LANES) {
                    const bf16 *one = weight + expert * width, *two = one + LANES * width;
                    alignas(LINE_BYTES) float sums[2][LANES * V * LANES];
                    multiply_two<V>(tiles.at(0), tiles.pairs, one, two, width, sums[0], sums[1], [] {});
                    for (int half = 0; half < 2; half++) {
                        const int64_t to = expert + half * LANES, left = std::clamp<int64_t>(experts - to, 0, LANES);
                        for (int64_t v = 0; v < V; v++) {
                            __m512i block[16];
                            for (int n = 0; n < 16; n++) block[n] = _mm512_loadu_si512(sums[half] + (n * V + v) * LANES);
                            transpose(block);
                            for (int64_t m = 0; m < std::min<int64_t>(LANES, count - v * LANES); m++)
                                _mm512_mask_storeu_epi32(out + (first + v * LANES + m) * experts + to,
                                                         static_cast<__mmask16>((1 << left) - 1), block[m]);
                        }
                    }
                }
            });
        });
    });
    return true;
}

#else

inline bool router_logits(const bf16*, int64_t, int64_t, const bf16*, int64_t, float*, int) { return false; }

#endif

// The indices of the largest scores of each row, the largest first; of equal ones the first. There are `width` scores in a row,
// and no more are wanted. Of numbers that are none, or infinite, it is some index of the row.
inline void topk(const float* scores, int64_t rows, int64_t width, int64_t wanted, int64_t* indices, int threads) {
    constexpr int64_t ROWS = 32;
    const int64_t padded_width = round_up(width, LANES);
    run_team(threads, [&](Team& team, int) {
        int phase = 0;
        team.each((rows + ROWS - 1) / ROWS, phase, [&](int64_t task) {
            static thread_local std::vector<float> left;
            left.assign(padded_width, -INFINITY);
            for (int64_t row = task * ROWS; row < std::min(rows, (task + 1) * ROWS); row++) {
                std::copy(scores + row * width, scores + (row + 1) * width, left.begin());
                for (int64_t k = 0; k < wanted; k++) {
                    Floats most = load(left.data());
                    for (int64_t n = LANES; n < padded_width; n += LANES) {
                        const Floats some = load(&left[n]);
                        most = some > most ? some : most;
                    }
                    float largest = most[0];
                    for (int i = 1; i < LANES; i++) largest = std::max(largest, most[i]);
                    const int64_t index = std::find(left.begin(), left.begin() + width - 1, largest) - left.begin();
                    left[index] = -INFINITY;
                    indices[row * wanted + k] = index;
                }
            }
        });
    });
}

// Logits [tokens, experts] as scores, in place: softmax, or each by itself.
inline void to_scores(float* logits, int64_t tokens, int64_t experts, bool is_sigmoid, int threads) {
    constexpr int64_t ROWS = 32;
    const int64_t padded_experts = round_up(experts, LANES);
    run_team(threads, [&](Team& team, int) {
        int phase = 0;
        team.each((tokens + ROWS - 1) / ROWS, phase, [&](int64_t task) {
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
    });
}

// What a router says of the tokens of a prefill, from logits [tokens, experts], which become scores: the best by score and bias,
// which may be null, and what each of them weighs, [tokens, best].
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

// Slots [tokens, slots], each of an expert, as rows sorted by expert and then in their order: the token of each row, the row of
// each slot, and how many rows each expert has.
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
