// All queries of one head in tile registers, two vectors of sixteen queries at a time.
//
// In and out as prefill_attention.h says, which alone includes this. Lanes are queries all along: keys are the rows of
// the first product, and of its scores each lane finds its own largest and its own sum; what comes out lies in pairs of
// keys as the second product takes it, whose rows are the channels of the values, transposed once for each head. Where
// other queries beside it see more keys, a query's weights for them are exact zeros.
#pragma once
#include "amx.h"
#include "memory.h"

namespace vl2 {

constexpr int64_t TILE_QUERIES = 2 * LANES, TILE_KEYS = 2 * LANES;  // at a time

// Keys as rows of whole tiles, values transposed: rows of channels. Zeros fill both up.
struct PackedHead {
    AlignedVector<bf16> keys, values;  // [keys][channels]; [value channels][value_row]
    int64_t channels, num_keys, value_row;

    // So many keys and values, whose channels lie where `key_at` and `value_at` say.
    template <class KeyAt, class ValueAt>
    void pack(int64_t count, int64_t key_channels, int64_t value_channels, const KeyAt& key_at,
              const ValueAt& value_at) {
        channels = round_up(key_channels, 32);
        num_keys = round_up(count, TILE_KEYS);
        // An odd number of lines: sixteen rows that lie an even number apart share few places of the first cache.
        value_row = (num_keys / TILE_KEYS | 1) * TILE_KEYS;
        keys.resize(num_keys * channels);
        values.resize(round_up(value_channels, 32) * value_row);
        for (int64_t k = 0; k < num_keys; k++)
            for (int64_t c = 0; c < channels; c += 32)
                _mm512_storeu_si512(&keys[k * channels + c], k < count ? load_part(key_at(k) + c, key_channels - c)
                                                                       : _mm512_setzero_si512());
        for (int64_t k = 0; k < num_keys; k += LANES)
            for (int64_t c = 0; c < round_up(value_channels, 32); c += 32) {
                __m512i block[16];  // of a key each, then of a pair of channels each
                for (int64_t i = 0; i < LANES; i++)
                    block[i] = k + i < count ? load_part(value_at(k + i) + c, value_channels - c)
                                             : _mm512_setzero_si512();
                transpose(block);
                for (int64_t i = 0; i < LANES; i++) {
                    bf16* to = &values[(c + 2 * i) * value_row + k];
                    _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16(block[i]));
                    _mm256_storeu_si256((__m256i*)(to + value_row),
                                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(block[i], 16)));
                }
            }
    }
};

// So many rows, whole vectors of them, which lie where `row_at` says: [pair of channels][rows]. Zeros fill the channels
// up to a multiple of 32.
template <class RowAt>
void pack_pairs(int64_t rows, int64_t channels, const RowAt& row_at, uint32_t* to) {
    for (int64_t v = 0; v < rows; v += LANES)
        for (int64_t c = 0; c < channels; c += 32) {
            __m512i block[16];
            for (int64_t i = 0; i < LANES; i++) block[i] = load_part(row_at(v + i) + c, channels - c);
            transpose(block);
            for (int64_t i = 0; i < LANES; i++) _mm512_storeu_si512(to + (c / 2 + i) * rows + v, block[i]);
        }
}

// Sixteen queries, of whose scores [keys][32] query i sees `visible_keys[i]`, and all of them see `visible_to_all`.
struct SoftmaxLanes {
    const float* scores;
    Ints visible_keys;
    int64_t visible_to_all;
    __m512 largest = _mm512_set1_ps(-INFINITY);

    __mmask16 visible_mask(int64_t key) const {
        return _mm512_cmpgt_epi32_mask(bit_cast<__m512i>(visible_keys), _mm512_set1_epi32(static_cast<int32_t>(key)));
    }
    __m512 score(int64_t key) const { return _mm512_loadu_ps(scores + key * TILE_QUERIES); }

    // Keys first to last are there, while the first cache still holds them.
    void update_largest(int64_t first, int64_t last) {
        __m512 most = largest;  // as a member it would be written at each step
        int64_t k = first;
        for (const int64_t end = std::min(last, visible_to_all); k < end; k++) most = _mm512_max_ps(most, score(k));
        for (; k < last; k++) most = _mm512_mask_max_ps(most, visible_mask(k), most, score(k));
        largest = most;
    }

    // e^(scale * (score - largest)) in pairs of keys as bfloat16, [pair of keys][32], zeros of what is not seen up to
    // `width`, an even number. Returns their sums before rounding. `scale` is positive.
    Floats softmax(int64_t width, float scale, uint32_t* weights) const {
        const __m512 in_powers = _mm512_set1_ps(scale * 1.44269504f), down = _mm512_mul_ps(largest, in_powers);
        __m512 total = _mm512_setzero_ps();
        const auto weight = [&](int64_t key) {
            return fast_power_of_two(_mm512_fmsub_ps(score(key), in_powers, down));
        };
        const auto take = [&](int64_t k, __m512 one, __m512 two) {
            total = _mm512_add_ps(total, _mm512_add_ps(one, two));
            _mm512_storeu_si512(weights + k / 2 * TILE_QUERIES, interleave_bf16(one, two));
        };
        int64_t k = 0;
        for (; k + 2 <= visible_to_all; k += 2) take(k, weight(k), weight(k + 1));
        for (; k < width; k += 2)
            take(k, _mm512_maskz_mov_ps(visible_mask(k), weight(k)),
                 _mm512_maskz_mov_ps(visible_mask(k + 1), weight(k + 1)));
        return bit_cast<Floats>(total);
    }
};

// The epilogue: 32 channels of up to 32 queries, of which `sums` hold [32][32], divided by the queries' totals, whose
// inverses are given. `out_at` says where each query's channels begin, of which those from `channel` on are stored.
template <class OutAt>
void store_means(const float* sums, const Floats* inverses, int64_t count, int64_t channel, int64_t channels,
                 const OutAt& out_at) {
    for (int64_t half = 0; half < 2; half++) {
        const int64_t left = channels - channel - half * LANES;
        if (left <= 0) return;
        const __mmask16 kept = left < LANES ? static_cast<__mmask16>((1u << left) - 1) : 0xffff;
        for (int64_t v = 0; v < TILE_QUERIES / LANES; v++) {
            __m512i block[16];
            for (int64_t c = 0; c < LANES; c++) {
                const Floats mean = load(sums + (half * LANES + c) * TILE_QUERIES + v * LANES) * inverses[v];
                block[c] = bit_cast<__m512i>(mean);
            }
            transpose(block);
            for (int64_t m = 0; m < std::min<int64_t>(LANES, count - v * LANES); m++)
                _mm256_mask_storeu_epi16(out_at(v * LANES + m) + channel + half * LANES, kept,
                                         (__m256i)_mm512_cvtneps_pbh((__m512)block[m]));
        }
    }
}

// All queries of one head. Scores of 32 queries with all their keys are kept, so that each query's largest is known
// before the first power is made: no sum is scaled again.
inline void attend_queries(const Attention& a, int64_t b, int64_t h) {
    static thread_local PackedHead head;
    static thread_local std::vector<Line> query, weights;
    static thread_local AlignedVector<float> scores;
    const TileRegisters registers;
    const auto nothing = [] {};
    head.pack(
        a.keys, a.channels, a.value_channels, [&](int64_t k) { return a.key.at(b, h / a.shared, k); },
        [&](int64_t k) { return a.value.at(b, h / a.shared, k); });
    query.resize(head.channels);
    weights.resize(head.num_keys);
    scores.resize(head.num_keys * TILE_QUERIES);
    uint32_t *queries = query.data()->words, *pairs = weights.data()->words;
    for (int64_t first = 0; first < a.queries; first += TILE_QUERIES) {
        const int64_t count = std::min(TILE_QUERIES, a.queries - first);
        const int64_t width = round_up(a.visible_keys(first + count - 1), TILE_KEYS);
        // A short tile repeats its last query.
        pack_pairs(
            TILE_QUERIES, a.channels,
            [&](int64_t i) { return a.query.at(b, h, first + std::min(i, count - 1)); }, queries);
        SoftmaxLanes lanes[2];
        for (int64_t v = 0; v < 2; v++) {
            lanes[v].scores = &scores[v * LANES];
            for (int64_t i = 0; i < LANES; i++)
                lanes[v].visible_keys[i] =
                    static_cast<int32_t>(a.visible_keys(first + std::min(v * LANES + i, count - 1)));
            lanes[v].visible_to_all = lanes[v].visible_keys[0];
        }
        const auto update_largest = [&](int64_t key) {
            for (SoftmaxLanes& some : lanes) some.update_largest(key, key + TILE_KEYS);
        };
        for (int64_t k = 0; k < width; k += TILE_KEYS) {
            const bf16* one = &head.keys[k * head.channels];
            float* to = &scores[k * TILE_QUERIES];
            multiply_blocks<2>(queries, TILE_QUERIES, {one, one + LANES * head.channels, head.channels}, head.channels,
                               to, to + LANES * TILE_QUERIES, nothing);
            // Scores that were just stored cannot be loaded yet, the processor would wait; those before them can.
            if (k > 0) update_largest(k - TILE_KEYS);
        }
        update_largest(width - TILE_KEYS);
        Floats inverses[2];
        for (int64_t v = 0; v < 2; v++)
            inverses[v] = 1.0f / lanes[v].softmax(width, static_cast<float>(a.scale), pairs + v * LANES);
        for (int64_t c = 0; c < a.value_channels; c += 32) {
            const bf16* one = &head.values[c * head.value_row];
            alignas(LINE_BYTES) float sums[32 * TILE_QUERIES];
            const BlockPair values{one, one + LANES * head.value_row, head.value_row};
            const auto multiply = [&](auto blocks) {
                float* sums_two = sums + LANES * TILE_QUERIES;
                multiply_blocks<2, blocks.value>(pairs, TILE_QUERIES, values, width, sums, sums_two, nothing);
            };
            if (a.value_channels - c > LANES) multiply(std::integral_constant<int, 2>());
            else multiply(std::integral_constant<int, 1>());
            store_means(sums, inverses, count, c, a.value_channels,
                        [&](int64_t i) { return a.out.at(b, h, first + i); });
        }
    }
}

}  // namespace vl2
