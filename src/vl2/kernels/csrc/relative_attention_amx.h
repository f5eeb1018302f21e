// Some queries of one head of a window in tile registers, two vectors of sixteen queries at a time.
//
// In and out as relative_attention.h says, which alone includes this. Lanes are queries all along. The scores of 32
// keys begin with the biases of their columns, which a tile takes as its first sums; those of their rows are added to
// what the powers are made of. Scores become powers right after the next 32 keys were multiplied, and some hundred
// powers at a time are multiplied with the values. Powers are taken relative to a score that was the largest when it
// was chosen, and another is chosen only where a later score is far above it: the sums are seldom scaled.
#pragma once
#include "amx.h"
#include "memory.h"

namespace vl2 {

// Keys and values of a window in tiles that lie behind one another: sixteen keys by 32 channels, the channels' tiles of
// the same keys first; and sixteen channels by 32 keys, the keys' tiles of the same channels first. Zeros fill both up.
struct KeyTiles {
    static constexpr int64_t NUMBERS = TILE_BYTES / sizeof(bf16), ROW = 32;  // of a tile, and of one of its rows

    AlignedVector<bf16> keys, values;
    int64_t num_keys, channels;

    void pack(const Window& window) {
        window.list_places(places_);
        const bf16* const* const places = places_.data();
        const int64_t C = window.a.channels, count = window.keys(), part = window.part();
        // Rows of one head lie pages apart. Without this each would be waited for.
        for (int64_t k = 0; k < count; k++)
            for (int64_t p = 0; p < 3; p++)
                for (int64_t c = 0; c < C; c += LINE_BYTES / sizeof(bf16))
                    _mm_prefetch(reinterpret_cast<const char*>(places[k] + p * part + c), _MM_HINT_T1);
        channels = round_up(C, ROW);
        num_keys = round_up(count, ROW);
        keys.resize(num_keys * channels);
        values.resize(num_keys * channels);
        for (int64_t k = 0; k < num_keys; k++)
            for (int64_t c = 0; c < channels; c += ROW)
                _mm512_store_si512(key_tile(k / LANES, c / ROW) + k % LANES * ROW,
                                   k < count ? load_part(places[k] + part + c, C - c) : _mm512_setzero_si512());
        for (int64_t k = 0; k < num_keys; k += LANES)
            for (int64_t c = 0; c < channels; c += ROW) {
                __m512i block[16];  // of a key each, then of a pair of channels each
                for (int64_t i = 0; i < LANES; i++)
                    block[i] = k + i < count ? load_part(places[k + i] + 2 * part + c, C - c) : _mm512_setzero_si512();
                transpose(block);
                for (int64_t i = 0; i < LANES; i++) {
                    bf16* to = value_tile((c + 2 * i) / LANES, k / ROW) + 2 * i % LANES * ROW + k % ROW;
                    _mm256_store_si256((__m256i*)to, _mm512_cvtepi32_epi16(block[i]));
                    _mm256_store_si256((__m256i*)(to + ROW), _mm512_cvtepi32_epi16(_mm512_srli_epi32(block[i], 16)));
                }
            }
    }
    bf16* key_tile(int64_t block, int64_t step) { return &keys[(block * (channels / ROW) + step) * NUMBERS]; }
    bf16* value_tile(int64_t block, int64_t step) { return &values[(block * (num_keys / ROW) + step) * NUMBERS]; }

   private:
    std::vector<const bf16*> places_;
};

// A table of distances, reversed, in pairs of channels: [pair of channels][distance].
struct PackedDistances {
    std::vector<Line> lines;
    int64_t count = 0;  // of distances, a multiple of 32

    void pack(const bf16* table, const Window& window) {
        const int64_t last = window.num_distances() - 1, channels = window.a.channels;
        count = round_up(last + 1, 2 * LANES);
        lines.resize(round_up(channels, 32) / 2 * count / LANES);
        // What lies behind the last distance is never used.
        pack_pairs(
            count, channels, [&](int64_t i) { return table + (last - std::min(i, last)) * channels; }, words());
    }
    uint32_t* words() { return lines.data()->words; }
};

// Up to 32 queries of a head: their rows, their products with the distances, and the biases by place and query.
class QueryTile {
   public:
    // The last is repeated where there are fewer.
    void pack(const Window& window, int64_t first, int64_t count) {
        const int64_t C = window.a.channels;
        channels_ = round_up(C, 32);
        rows_.resize(TILE_QUERIES * channels_);
        pairs_.resize(channels_);
        for (int64_t i = 0; i < TILE_QUERIES; i++) {
            queries_[i] = i < count ? Query(window, first + i) : queries_[count - 1];
            for (int64_t c = 0; c < channels_; c += 32)
                _mm512_store_si512(&rows_[i * channels_ + c], load_part(queries_[i].from + c, C - c));
        }
        pack_pairs(TILE_QUERIES, channels_, [&](int64_t i) { return &rows_[i * channels_]; }, pairs_.data()->words);
    }
    // [pair of channels][32], from a pair on.
    const uint32_t* pairs(int64_t pair) const { return pairs_.data()->words + pair * TILE_QUERIES; }

    // The biases of so many rows or columns of the window, times a factor.
    void make_row_biases(PackedDistances& distances, int64_t places, float factor, float* biases) {
        make_biases(distances, places, factor, &Query::first_h, biases);
    }
    void make_column_biases(PackedDistances& distances, int64_t places, float factor, float* biases) {
        make_biases(distances, places, factor, &Query::first_w, biases);
    }
    bf16* out(int64_t i) const { return queries_[i].out; }

   private:
    int64_t channels_ = 0;
    AlignedVector<bf16> rows_;       // [32][channels]
    std::vector<Line> pairs_;        // [pair of channels][32]
    AlignedVector<float> products_;  // [32][distance]
    Query queries_[TILE_QUERIES];

    // biases [place][32]: the product of each query with the distance that many after its `first`.
    void make_biases(PackedDistances& distances, int64_t places, float factor, int64_t Query::*first,
                     float* biases) {
        const int64_t count = distances.count;
        products_.resize(TILE_QUERIES * count + LANES);  // a vector may begin at the last
        const auto nothing = [] {};
        const BlockPair queries{&rows_[0], &rows_[LANES * channels_], channels_};
        for (int64_t d = 0; d < count; d += 2 * LANES)
            multiply_blocks<2>(distances.words() + d, count, queries, channels_, &products_[d],
                               &products_[LANES * count + d], nothing);
        for (int64_t v = 0; v < TILE_QUERIES; v += LANES)
            for (int64_t place = 0; place < places; place += LANES) {
                __m512i block[16];  // of a query each, then of a place each
                for (int64_t i = 0; i < LANES; i++)
                    block[i] = _mm512_loadu_si512(&products_[(v + i) * count + queries_[v + i].*first + place]);
                transpose(block);
                for (int64_t i = 0; i < LANES; i++)
                    _mm512_store_ps(biases + (place + i) * TILE_QUERIES + v,
                                    _mm512_mul_ps((__m512)block[i], _mm512_set1_ps(factor)));
            }
    }
};

// Products of two blocks of sixteen rows in tiles, `apart` numbers from one tile to the block's next, with 32 columns
// of pairs: sums [2][16][32], which begin with what is at `start`, one place for each block; null: with zeros.
inline void multiply_tiles(const bf16* one, const bf16* two, int64_t apart, const uint32_t* pairs, int64_t steps,
                           const float* start_one, const float* start_two, float* sums) {
    constexpr int64_t SUM_ROW = 4 * TILE_QUERIES, STEP_WORDS = LANES * TILE_QUERIES;
    float* sums_two = sums + LANES * TILE_QUERIES;
    if (start_one) {
        _tile_loadd(0, start_one, SUM_ROW);
        _tile_loadd(1, start_two, SUM_ROW);
        _tile_loadd(2, start_one + LANES, SUM_ROW);
        _tile_loadd(3, start_two + LANES, SUM_ROW);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t step = 0; step < steps; step++, one += apart, two += apart, pairs += STEP_WORDS) {
        _tile_loadd(4, one, 64);
        _tile_loadd(6, pairs, SUM_ROW);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, two, 64);
        _tile_dpbf16ps(1, 5, 6);
        _tile_loadd(7, pairs + LANES, SUM_ROW);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, SUM_ROW);
    _tile_stored(1, sums_two, SUM_ROW);
    _tile_stored(2, sums + LANES, SUM_ROW);
    _tile_stored(3, sums_two + LANES, SUM_ROW);
}

// The softmax and the weighted sums of values of 32 queries, which take 32 keys after another.
class RelativeSoftmax {
   public:
    static constexpr int64_t MOST_PENDING = 256;  // keys whose powers wait for the values

    // `to_power` times a score, plus the row's bias, is the exponent of a power of two.
    void begin(KeyTiles& tiles, int64_t window, const float* row_biases, float to_power) {
        tiles_ = &tiles;
        window_ = window;
        row_biases_ = row_biases;
        to_power_ = _mm512_set1_ps(to_power);
        sums_.resize(tiles.channels * TILE_QUERIES);
        weights_.resize(MOST_PENDING);
        first_pending_ = pending_ = row_ = column_ = 0;
        for (int v = 0; v < 2; v++) {
            reference_[v] = _mm512_set1_ps(-INFINITY);
            totals_[v] = _mm512_setzero_ps();
        }
    }

    // The scores [32][32] of the next keys, of which the first `count` are there, an even number.
    void take(const float* scores, int64_t count) {
        choose_reference(scores, count);
        uint32_t* const to = weights_.data()->words + (pending_ - first_pending_) / 2 * TILE_QUERIES;
        __m512 totals[2] = {totals_[0], totals_[1]};
        for_each_row(count, [&](int64_t first, int64_t last, const float* bias) {
            const __m512 shifts[2] = {_mm512_sub_ps(_mm512_load_ps(bias), reference_[0]),
                                      _mm512_sub_ps(_mm512_load_ps(bias + LANES), reference_[1])};
            const auto power = [&](int64_t key, int v) {
                const __m512 score = _mm512_load_ps(scores + key * TILE_QUERIES + v * LANES);
                return fast_power_of_two(_mm512_fmadd_ps(score, to_power_, shifts[v]));
            };
            for (int64_t k = first; k < last; k += 2) {
                const __m512 powers[4] = {power(k, 0), power(k + 1, 0), power(k, 1), power(k + 1, 1)};
                for (int v = 0; v < 2; v++) {
                    totals[v] = _mm512_add_ps(totals[v], _mm512_add_ps(powers[2 * v], powers[2 * v + 1]));
                    _mm512_store_si512(to + k / 2 * TILE_QUERIES + v * LANES,
                                       interleave_bf16(powers[2 * v], powers[2 * v + 1]));
                }
            }
        });
        totals_[0] = totals[0];
        totals_[1] = totals[1];
        std::fill(to + count / 2 * TILE_QUERIES, to + TILE_KEYS / 2 * TILE_QUERIES, 0);
        advance(count);
        pending_ += TILE_KEYS;
        if (pending_ - first_pending_ == MOST_PENDING) add_pending();
    }

    // The means of the values.
    template <class OutAt>
    void finish(int64_t count, int64_t value_channels, const OutAt& out_at) {
        add_pending();
        const Floats inverses[2] = {1.0f / bit_cast<Floats>(totals_[0]), 1.0f / bit_cast<Floats>(totals_[1])};
        for (int64_t c = 0; c < value_channels; c += 32)
            store_means(&sums_[c * TILE_QUERIES], inverses, count, c, value_channels, out_at);
    }

   private:
    // How far, in powers of two, a score may be above the reference: float32 holds the sums of such powers, and
    // bfloat16 rounds powers of any size alike.
    static constexpr float HEADROOM = 16;

    KeyTiles* tiles_ = nullptr;
    int64_t window_ = 0;
    const float* row_biases_ = nullptr;  // [row][32]
    __m512 to_power_, reference_[2], totals_[2];
    AlignedVector<float> sums_;  // [channel][32]
    std::vector<Line> weights_;  // [pair of keys][32], of the pending keys
    int64_t first_pending_ = 0, pending_ = 0;
    int64_t row_ = 0, column_ = 0;  // of the window, where the next keys begin

    // Call `step` with the keys, from one to another, that lie in one row of the window, and the row's biases.
    template <class Step>
    void for_each_row(int64_t count, const Step& step) const {
        int64_t row = row_, left = window_ - column_;
        for (int64_t first = 0, last; first < count; first = last, left = window_, row++) {
            last = std::min(count, first + left);
            step(first, last, row_biases_ + row * TILE_QUERIES);
        }
    }
    void advance(int64_t count) {
        column_ += count;
        row_ += column_ / window_;
        column_ %= window_;
    }

    void choose_reference(const float* scores, int64_t count) {
        const __m512 least = _mm512_set1_ps(-INFINITY);
        __m512 largest[2] = {least, least};
        for_each_row(count, [&](int64_t first, int64_t last, const float* bias) {
            __m512 most[4] = {least, least, least, least};  // of even and odd keys: one alone waits for itself
            for (int64_t k = first; k < last; k += 2)
                for (int i = 0; i < 4; i++)
                    most[i] = _mm512_max_ps(most[i], _mm512_load_ps(scores + k * TILE_QUERIES + i * LANES));
            for (int v = 0; v < 2; v++) {
                const __m512 score = _mm512_max_ps(most[v], most[2 + v]);
                largest[v] = _mm512_max_ps(
                    largest[v], _mm512_fmadd_ps(score, to_power_, _mm512_load_ps(bias + v * LANES)));
            }
        });
        __mmask16 above[2];
        for (int v = 0; v < 2; v++)
            above[v] = _mm512_cmp_ps_mask(largest[v], _mm512_add_ps(reference_[v], _mm512_set1_ps(HEADROOM)),
                                          _CMP_GT_OQ);
        if (above[0] | above[1]) raise_reference(largest, above);
    }

    __attribute__((noinline)) void raise_reference(const __m512* largest, const __mmask16* above) {
        add_pending();
        for (int v = 0; v < 2; v++) {
            const __m512 before = reference_[v];
            reference_[v] = _mm512_mask_mov_ps(before, above[v], largest[v]);
            if (pending_ == 0) continue;
            // Exactly 1 for other queries: their bits do not depend on this one.
            const __m512 factor = _mm512_mask_mov_ps(_mm512_set1_ps(1.0f), above[v],
                                                     power_of_two(_mm512_sub_ps(before, reference_[v])));
            totals_[v] = _mm512_mul_ps(totals_[v], factor);
            for (int64_t c = 0; c < tiles_->channels; c++) {
                float* sum = &sums_[c * TILE_QUERIES + v * LANES];
                _mm512_store_ps(sum, _mm512_mul_ps(_mm512_load_ps(sum), factor));
            }
        }
    }

    // Add what the pending keys' values weigh to the sums.
    void add_pending() {
        if (pending_ == first_pending_) return;
        const int64_t step = first_pending_ / KeyTiles::ROW, steps = (pending_ - first_pending_) / KeyTiles::ROW;
        for (int64_t c = 0; c < tiles_->channels; c += 2 * LANES) {
            float* sums = &sums_[c * TILE_QUERIES];
            const float* start = first_pending_ == 0 ? nullptr : sums;
            multiply_tiles(tiles_->value_tile(c / LANES, step), tiles_->value_tile(c / LANES + 1, step),
                           KeyTiles::NUMBERS, weights_.data()->words, steps, start,
                           start ? start + LANES * TILE_QUERIES : nullptr, sums);
        }
        first_pending_ = pending_;
    }
};

// What a thread keeps for its next window: new memory would be cleared first, each time.
class WindowAttention {
   public:
    // Queries `begin` to `end` of a window. Not inlined: the compiler would look up where the thread's memory lies at
    // each step.
    __attribute__((noinline)) void run(const Window& window, int64_t begin, int64_t end) {
        const TileRegisters registers;
        const int64_t side = window.a.window, places = round_up(side, LANES);
        tiles_.pack(window);
        distances_h_.pack(window.a.along_h, window);
        distances_w_.pack(window.a.along_w, window);
        row_biases_.resize(places * TILE_QUERIES);
        column_biases_.resize((places + LANES) * TILE_QUERIES);
        scores_.resize(2 * TILE_KEYS * TILE_QUERIES);
        for (int64_t first = begin; first < end; first += TILE_QUERIES)
            attend_queries(window, first, std::min(TILE_QUERIES, end - first));
    }

   private:
    KeyTiles tiles_;
    PackedDistances distances_h_, distances_w_;
    QueryTile queries_;
    AlignedVector<float> row_biases_, column_biases_;  // [place][32]
    AlignedVector<float> scores_;                      // [2][32 keys][32]
    RelativeSoftmax softmax_;

    void attend_queries(const Window& window, int64_t first, int64_t count) {
        constexpr float LOG2_E = 1.44269504f;
        const float scale = static_cast<float>(window.a.scale);
        const int64_t side = window.a.window, places = round_up(side, LANES);
        queries_.pack(window, first, count);
        queries_.make_row_biases(distances_h_, places, LOG2_E, row_biases_.data());
        float* const columns = column_biases_.data();
        queries_.make_column_biases(distances_w_, places, 1 / scale, columns);
        // After the last column comes the first: sixteen keys may begin in one row and end in the next.
        for (int64_t i = side; i < side + LANES; i++)
            std::copy_n(columns + (i - side) * TILE_QUERIES, TILE_QUERIES, columns + i * TILE_QUERIES);
        softmax_.begin(tiles_, side, row_biases_.data(), scale * LOG2_E);
        float *now = scores_.data(), *before = now + TILE_KEYS * TILE_QUERIES;
        for (int64_t k = 0; k < tiles_.num_keys; k += TILE_KEYS, std::swap(now, before)) {
            const auto start = [&](int64_t key) { return columns + key % side * TILE_QUERIES; };
            multiply_tiles(tiles_.key_tile(k / LANES, 0), tiles_.key_tile(k / LANES + 1, 0), KeyTiles::NUMBERS,
                           queries_.pairs(0), tiles_.channels / KeyTiles::ROW, start(k), start(k + LANES), now);
            // Scores that were just stored cannot be loaded yet, the processor would wait; those before them can.
            if (k > 0) softmax_.take(before, TILE_KEYS);
        }
        softmax_.take(before, window.keys() - (tiles_.num_keys - TILE_KEYS));
        softmax_.finish(count, window.a.channels, [&](int64_t i) { return queries_.out(i); });
    }
};

// Queries `begin` to `end` of a window.
inline void attend_window(const Window& window, int64_t begin, int64_t end) {
    static thread_local WindowAttention kept;
    kept.run(window, begin, end);
}

}  // namespace vl2
