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

constexpr int64_t KEYS_AT_ONCE = 4 * LANES;
constexpr int QUERIES_AT_ONCE = 6;

struct PackedHead {
    AlignedVector<uint32_t> keys, values;  // [block][pair of channels][64 keys]; [pair of keys][channels]
    int64_t channel_pairs, key_blocks, value_width;

    void pack(const Attention& a, int64_t b, int64_t h) {
        channel_pairs = a.channels / 2;
        key_blocks = (a.keys + KEYS_AT_ONCE - 1) / KEYS_AT_ONCE;
        value_width = round_up(a.value_channels, LANES);
        keys.assign(key_blocks * channel_pairs * KEYS_AT_ONCE, 0);
        values.assign((a.keys + 1) / 2 * value_width, 0);
        for (int64_t k = 0; k < a.keys; k++) {
            uint32_t* to = &keys[k / KEYS_AT_ONCE * channel_pairs * KEYS_AT_ONCE + k % KEYS_AT_ONCE];
            const bf16* from = a.key.at(b, h, k);
            for (int64_t c = 0; c < channel_pairs; c++) std::memcpy(&to[c * KEYS_AT_ONCE], from + 2 * c, 4);
        }
        for (int64_t k = 0; k < a.keys; k++) {
            const bf16* from = a.value.at(b, h, k);
            bf16* to = reinterpret_cast<bf16*>(&values[k / 2 * value_width]) + k % 2;
            for (int64_t c = 0; c < a.value_channels; c++) to[2 * c] = from[c];
        }
    }
};

// Scores of up to six queries against the keys of `blocks` blocks, times scale: [query][keys].
template <int M>
inline void attention_scores(const PackedHead& head, const bf16* const* queries, int64_t blocks, float scale,
                             float* scores, int64_t width) {
    for (int64_t block = 0; block < blocks; block++) {
        const uint32_t* keys = &head.keys[block * head.channel_pairs * KEYS_AT_ONCE];
        __m512 acc[M][4];
        for (int m = 0; m < M; m++)
            for (int v = 0; v < 4; v++) acc[m][v] = _mm512_setzero_ps();
        for (int64_t c = 0; c < head.channel_pairs; c++, keys += KEYS_AT_ONCE) {
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
                _mm512_storeu_ps(scores + m * width + block * KEYS_AT_ONCE + v * LANES,
                                 _mm512_mul_ps(acc[m][v], _mm512_set1_ps(scale)));
    }
}

// e^(score - largest) of the first `seen` scores as bfloat16, zeros up to `width`; returns their sum before rounding.
inline float softmax_to_bf16(float* scores, int64_t seen, int64_t width, bf16* weights) {
    for (int64_t k = seen; k < round_up(seen, LANES); k++) scores[k] = -INFINITY;
    Floats best = load(scores);
    for (int64_t k = LANES; k < seen; k += LANES) {
        const Floats next = load(scores + k);
        best = next > best ? next : best;
    }
    float largest = best[0];
    for (int i = 1; i < LANES; i++) largest = std::max(largest, best[i]);
    Floats total = {};
    int64_t k = 0;
    for (; k < seen; k += LANES) {
        const Floats p = exponential(load(scores + k) - largest);
        total += p;
        const __m256bh half = _mm512_cvtneps_pbh(bits<__m512>(p));
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

constexpr int summed_at_once(int vectors) { return vectors <= 4 ? 6 : vectors == 5 ? 5 : vectors == 6 ? 4 : 3; }

template <int V>
inline void weighted_sums(const PackedHead& head, const bf16* weights, int64_t width, int64_t key_pairs, const float* totals,
                          bf16* const* out, int64_t count, int64_t channels) {
    constexpr int M = summed_at_once(V);
    int64_t m = 0;
    for (; m + M <= count; m += M)
        weighted_sum_of_values<M, V>(head, weights + m * width, width, key_pairs, totals + m, out + m, channels);
    for (; m < count; m++)
        weighted_sum_of_values<1, V>(head, weights + m * width, width, key_pairs, totals + m, out + m, channels);
}

// All queries of one head.
inline void attend_queries(const Attention& a, int64_t b, int64_t h) {
    constexpr int64_t TILE = 60;  // queries: a multiple of what is scored and of what is summed at once
    static thread_local PackedHead head;
    static thread_local AlignedVector<float> scores;
    static thread_local AlignedVector<bf16> weights;
    head.pack(a, b, h / a.shared);
    const int64_t width = head.key_blocks * KEYS_AT_ONCE;
    scores.resize(QUERIES_AT_ONCE * width);
    weights.resize(TILE * width);
    const float scale = static_cast<float>(a.scale);
    for (int64_t first = 0; first < a.queries; first += TILE) {
        const int64_t count = std::min(TILE, a.queries - first);
        const auto seen = [&](int64_t q) { return a.seen(first + q); };
        const int64_t key_pairs = (seen(count - 1) + 1) / 2;
        float totals[TILE];
        bf16* out[TILE];
        for (int64_t q = 0; q < count; q += QUERIES_AT_ONCE) {
            const int64_t some = std::min<int64_t>(QUERIES_AT_ONCE, count - q);
            const bf16* queries[QUERIES_AT_ONCE];
            for (int64_t m = 0; m < QUERIES_AT_ONCE; m++)
                queries[m] = a.query.at(b, h, first + q + std::min(m, some - 1));  // a short tile repeats its last
            const int64_t blocks = (seen(q + some - 1) + KEYS_AT_ONCE - 1) / KEYS_AT_ONCE;
            attention_scores<QUERIES_AT_ONCE>(head, queries, blocks, scale, scores.data(), width);
            for (int64_t m = 0; m < some; m++) {
                totals[q + m] = softmax_to_bf16(&scores[m * width], seen(q + m), round_up(2 * key_pairs, LANES),
                                               &weights[(q + m) * width]);
                out[q + m] = a.out.at(b, h, first + q + m);
            }
        }
        switch (head.value_width / LANES) {
            case 1: weighted_sums<1>(head, weights.data(), width, key_pairs, totals, out, count, a.value_channels); break;
            case 2: weighted_sums<2>(head, weights.data(), width, key_pairs, totals, out, count, a.value_channels); break;
            case 3: weighted_sums<3>(head, weights.data(), width, key_pairs, totals, out, count, a.value_channels); break;
            case 4: weighted_sums<4>(head, weights.data(), width, key_pairs, totals, out, count, a.value_channels); break;
            case 5: weighted_sums<5>(head, weights.data(), width, key_pairs, totals, out, count, a.value_channels); break;
            case 6: weighted_sums<6>(head, weights.data(), width, key_pairs, totals, out, count, a.value_channels); break;
            case 7: weighted_sums<7>(head, weights.data(), width, key_pairs, totals, out, count, a.value_channels); break;
            default: weighted_sums<8>(head, weights.data(), width, key_pairs, totals, out, count, a.value_channels); break;
        }
    }
}

}  // namespace vl2
