// Some queries of one head of a window with the bfloat16 dot product of AVX-512.
//
// In and out as relative_attention.h says, which alone includes this. The steps are those of
// prefill_attention_avx512.h; between a query's scores and its softmax the biases are added, row by row of the window.
#pragma once
#include "memory.h"

namespace vl2 {

// scores += the biases of a query: `by_row` of its products with the distances in rows, `by_column` with those in
// columns, each from the first place's on.
inline void add_biases(const float* by_row, const float* by_column, int64_t window, float* scores) {
    for (int64_t y = 0; y < window; y++, scores += window) {
        int64_t x = 0;
        for (; x + LANES <= window; x += LANES) store(scores + x, load(scores + x) + (load(by_column + x) + by_row[y]));
        for (; x < window; x++) scores[x] += by_column[x] + by_row[y];
    }
}

// Queries `begin` to `end` of a window.
inline void attend_window(const Window& window, int64_t begin, int64_t end) {
    constexpr int64_t QUERY_TILE = 24;  // queries: a multiple of what is scored and of what is summed at once
    static thread_local PackedHead head, distances_h, distances_w;
    static thread_local AlignedVector<float> scores, by_row, by_column;
    static thread_local AlignedVector<bf16> weights;
    static thread_local std::vector<const bf16*> places;
    const RelativeAttention& a = window.a;
    const int64_t keys = window.keys(), last = window.num_distances() - 1;
    window.list_places(places);
    head.pack(
        keys, a.channels, a.channels, [&](int64_t k) { return places[k] + window.part(); },
        [&](int64_t k) { return places[k] + 2 * window.part(); });
    distances_h.pack_keys(last + 1, a.channels, [&](int64_t i) { return a.along_h + (last - i) * a.channels; });
    distances_w.pack_keys(last + 1, a.channels, [&](int64_t i) { return a.along_w + (last - i) * a.channels; });
    const int64_t width = head.key_blocks * KEY_BLOCK, distances = distances_h.key_blocks * KEY_BLOCK;
    scores.resize(QUERY_BLOCK * width);
    by_row.resize(QUERY_BLOCK * distances);
    by_column.resize(QUERY_BLOCK * distances);
    weights.resize(QUERY_TILE * width);
    const float scale = static_cast<float>(a.scale);
    for (int64_t first = begin; first < end; first += QUERY_TILE) {
        const int64_t count = std::min(QUERY_TILE, end - first);
        float totals[QUERY_TILE];
        bf16* out[QUERY_TILE];
        for (int64_t q = 0; q < count; q += QUERY_BLOCK) {
            const int64_t some = std::min<int64_t>(QUERY_BLOCK, count - q);
            Query asked[QUERY_BLOCK];
            const bf16* queries[QUERY_BLOCK];
            for (int64_t m = 0; m < QUERY_BLOCK; m++) {
                asked[m] = Query(window, first + q + std::min(m, some - 1));  // a short tile repeats its last
                queries[m] = asked[m].from;
            }
            attention_scores<QUERY_BLOCK>(head, queries, head.key_blocks, scale, scores.data(), width);
            attention_scores<QUERY_BLOCK>(distances_h, queries, distances_h.key_blocks, 1, by_row.data(), distances);
            attention_scores<QUERY_BLOCK>(distances_w, queries, distances_w.key_blocks, 1, by_column.data(), distances);
            for (int64_t m = 0; m < some; m++) {
                add_biases(&by_row[m * distances + asked[m].first_h], &by_column[m * distances + asked[m].first_w],
                           a.window, &scores[m * width]);
                totals[q + m] = softmax_to_bf16(&scores[m * width], keys, round_up(keys, LANES),
                                                &weights[(q + m) * width]);
                out[q + m] = asked[m].out;
            }
        }
        with_constant<MOST_RELATIVE_CHANNELS / LANES>(head.value_width / LANES, [&](auto vectors) {
            weighted_sums<vectors.value>(head, weights.data(), width, (keys + 1) / 2, totals, out, count, a.channels);
        });
    }
}

}  // namespace vl2
