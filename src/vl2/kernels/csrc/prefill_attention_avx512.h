// All queries of one head with the bfloat16 dot product of AVX-512.
//
// In and out as prefill_attention.h says, which alone includes this. Keys and values of the head are packed once, so
// that sixteen of them lie beside one another in pairs, as the dot product takes them. Up to 60 queries are taken at a
// time: six are scored at once over all keys, then as many as registers hold are multiplied with the values.
#pragma once
#include <algorithm>
#include <vector>

#include "memory.h"

namespace vl2 {

// Six queries against four vectors of keys: 24 accumulators, six queries and a vector of keys are 31 of 32 registers.
constexpr int64_t KEY_BLOCK = 4 * LANES;
constexpr int QUERY_BLOCK = 6;

struct PackedHead {
    AlignedVector<uint32_t> keys, values;  // [block][pair of channels][64 keys]; [pair of keys][channels]
    int64_t channel_pairs, key_blocks, value_width;

    // So many keys and values, whose channels lie where `key_at` and `value_at` say.
    template <class KeyAt, class ValueAt>
    void pack(int64_t count, int64_t channels, int64_t value_channels, const KeyAt& key_at, const ValueAt& value_at) {
        pack_keys(count, channels, key_at);
        value_width = round_up(value_channels, LANES);
        values.assign((count + 1) / 2 * value_width, 0);
        for (int64_t k = 0; k < count; k++) {
            const bf16* from = value_at(k);
            bf16* to = reinterpret_cast<bf16*>(&values[k / 2 * value_width]) + k % 2;
            for (int64_t c = 0; c < value_channels; c++) to[2 * c] = from[c];
        }
    }

    template <class KeyAt>
    void pack_keys(int64_t count, int64_t channels, const KeyAt& key_at) {
        channel_pairs = channels / 2;
        key_blocks = (count + KEY_BLOCK - 1) / KEY_BLOCK;
        keys.assign(key_blocks * channel_pairs * KEY_BLOCK, 0);
        for (int64_t k = 0; k < count; k++) {
            uint32_t* to = &keys[k / KEY_BLOCK * channel_pairs * KEY_BLOCK + k % KEY_BLOCK];
            const bf16* from = key_at(k);
            for (int64_t c = 0; c < channel_pairs; c++) std::memcpy(&to[c * KEY_BLOCK], from + 2 * c, 4);
        }
    }
};

// Scores of up to six queries against the keys of `blocks` blocks, times scale: [query][keys].
template <int M>
inline void attention_scores(const PackedHead& head, const bf16* const* queries, int64_t blocks, float scale,
                             float* scores, int64_t width) {
    for (int64_t block = 0; block < blocks; block++) {
        const uint32_t* keys = &head.keys[block * head.channel_pairs * KEY_BLOCK];
        __m512 acc[M][4];
        for (int m = 0; m < M; m++)
            for (int v = 0; v < 4; v++) acc[m][v] = _mm512_setzero_ps();
        for (int64_t c = 0; c < head.channel_pairs; c++, keys += KEY_BLOCK) {
            __m512bh query[M];
            for (int m = 0; m < M; m++) query[m] = broadcast_pair(queries[m] + 2 * c);
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) {
                const __m512bh key = (__m512bh)_mm512_loadu_si512(keys + v * LANES);
                for (int m = 0; m < M; m++) acc[m][v] = _mm512_dpbf16_ps(acc[m][v], key, query[m]);
            }
        }
        for (int m = 0; m < M; m++)
            for (int v = 0; v < 4; v++)
                _mm512_storeu_ps(scores + m * width + block * KEY_BLOCK + v * LANES,
                                 _mm512_mul_ps(acc[m][v], _mm512_set1_ps(scale)));
    }
}

// e^(score - largest) of the first `visible_keys` scores as bfloat16, zeros up to `width`; returns their sum before
// rounding.
inline float softmax_to_bf16(float* scores, int64_t visible_keys, int64_t width, bf16* weights) {
    for (int64_t k = visible_keys; k < round_up(visible_keys, LANES); k++) scores[k] = -INFINITY;
    Floats best = load(scores);
    for (int64_t k = LANES; k < visible_keys; k += LANES) {
        const Floats next = load(scores + k);
        best = next > best ? next : best;
    }
    float largest = best[0];
    for (int i = 1; i < LANES; i++) largest = std::max(largest, best[i]);
    Floats total = {};
    int64_t k = 0;
    for (; k < visible_keys; k += LANES) {
        const Floats p = exponential(load(scores + k) - largest);
        total += p;
        const __m256bh half = _mm512_cvtneps_pbh(bit_cast<__m512>(p));
        std::memcpy(weights + k, &half, sizeof half);
    }
    std::fill(weights + std::min(k, width), weights + width, static_cast<bf16>(0));
    return sum(total);
}

// sum over keys of weight * value for M queries, divided by their totals.
template <int M, int V>
inline void weighted_sum_of_values(const PackedHead& head, const bf16* weights, int64_t width, int64_t key_pairs,
                                   const float* totals, bf16* const* out, int64_t channels) {
    __m512 acc[M][V];
    for (int m = 0; m < M; m++)
        for (int v = 0; v < V; v++) acc[m][v] = _mm512_setzero_ps();
    const uint32_t* values = head.values.data();
    for (int64_t k = 0; k < key_pairs; k++, values += V * LANES) {
        __m512bh weight[M];
        for (int m = 0; m < M; m++) weight[m] = broadcast_pair(weights + m * width + 2 * k);
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            const __m512bh value = (__m512bh)_mm512_loadu_si512(values + v * LANES);
            for (int m = 0; m < M; m++) acc[m][v] = _mm512_dpbf16_ps(acc[m][v], value, weight[m]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int v = 0; v < V; v++) {
            const int64_t left = channels - v * LANES;
            const __mmask16 kept = left < LANES ? static_cast<__mmask16>((1u << left) - 1) : 0xffff;
            const __m512 mean = _mm512_div_ps(acc[m][v], _mm512_set1_ps(totals[m]));
            _mm256_mask_storeu_epi16(out[m] + v * LANES, kept, (__m256i)_mm512_cvtneps_pbh(mean));
        }
}

// Queries whose sums over V vectors of values fit the registers, beside the queries' weights.
constexpr int queries_at_once(int vectors) { return vectors <= 4 ? 6 : vectors == 5 ? 5 : vectors == 6 ? 4 : 3; }

template <int V>
inline void weighted_sums(const PackedHead& head, const bf16* weights, int64_t width, int64_t key_pairs,
                          const float* totals, bf16* const* out, int64_t count, int64_t channels) {
    constexpr int M = queries_at_once(V);
    int64_t m = 0;
    for (; m + M <= count; m += M)
        weighted_sum_of_values<M, V>(head, weights + m * width, width, key_pairs, totals + m, out + m, channels);
    for (; m < count; m++)
        weighted_sum_of_values<1, V>(head, weights + m * width, width, key_pairs, totals + m, out + m, channels);
}

// All queries of one head. Scores of a query with all its keys are kept, so that its largest is known before the first
// power is made: no sum is scaled again.
inline void attend_queries(const Attention& a, int64_t b, int64_t h) {
    constexpr int64_t QUERY_TILE = 60;  // queries: a multiple of what is scored and of what is summed at once
    static thread_local PackedHead head;
    static thread_local AlignedVector<float> scores;
    static thread_local AlignedVector<bf16> weights;
    head.pack(
        a.keys, a.channels, a.value_channels, [&](int64_t k) { return a.key.at(b, h / a.shared, k); },
        [&](int64_t k) { return a.value.at(b, h / a.shared, k); });
    const int64_t width = head.key_blocks * KEY_BLOCK;
    scores.resize(QUERY_BLOCK * width);
    weights.resize(QUERY_TILE * width);
    const float scale = static_cast<float>(a.scale);
    for (int64_t first = 0; first < a.queries; first += QUERY_TILE) {
        const int64_t count = std::min(QUERY_TILE, a.queries - first);
        const auto visible_keys = [&](int64_t q) { return a.visible_keys(first + q); };
        const int64_t key_pairs = (visible_keys(count - 1) + 1) / 2;
        float totals[QUERY_TILE];
        bf16* out[QUERY_TILE];
        for (int64_t q = 0; q < count; q += QUERY_BLOCK) {
            const int64_t some = std::min<int64_t>(QUERY_BLOCK, count - q);
            const bf16* queries[QUERY_BLOCK];
            for (int64_t m = 0; m < QUERY_BLOCK; m++)
                queries[m] = a.query.at(b, h, first + q + std::min(m, some - 1));  // a short tile repeats its last
            const int64_t blocks = (visible_keys(q + some - 1) + KEY_BLOCK - 1) / KEY_BLOCK;
            attention_scores<QUERY_BLOCK>(head, queries, blocks, scale, scores.data(), width);
            for (int64_t m = 0; m < some; m++) {
                totals[q + m] = softmax_to_bf16(&scores[m * width], visible_keys(q + m), round_up(2 * key_pairs, LANES),
                                               &weights[(q + m) * width]);
                out[q + m] = a.out.at(b, h, first + q + m);
            }
        }
        with_constant<MOST_VALUE_CHANNELS / LANES>(head.value_width / LANES, [&](auto vectors) {
            weighted_sums<vectors.value>(head, weights.data(), width, key_pairs, totals, out, count, a.value_channels);
        });
    }
}

}  // namespace vl2
