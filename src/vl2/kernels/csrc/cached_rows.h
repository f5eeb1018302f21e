// Rows of the key-value cache as attention reads and writes them: bfloat16, or int8 codes with a scale for each row.
//
// In: a CacheRow (model.h). Out: products of a query with the keys of one head, and weighted sums of its values; or the
// same of the latents, which all heads share. The two classes have the same functions, and decode_attention.h is written
// once for both. A new row is quantized before it is attended to, so that a later step finds what this one has seen.
// fused_prefill.h uses the functions at the end to read a prompt with bfloat16 rows. All is portable.
#pragma once
#include <algorithm>
#include <vector>

#include "int8.h"
#include "model.h"
#include "threads.h"

namespace vl2 {

// `V` vectors of the sum over rows of weight * row, into `out`. The sums stay in registers over all rows.
template <int V, class T, class Number>
inline void weighted_sum_vectors(const T* weights, float scale, const Number* rows, int64_t stride, int64_t count,
                                 bf16* out) {
    Floats acc[V] = {};
    for (int64_t i = 0; i < count; i++) {
        float weight;
        if constexpr (sizeof(T) == 2) weight = to_float(weights[i]);
        else weight = weights[i];
        for (int v = 0; v < V; v++) acc[v] += weight * load(rows + i * stride + v * LANES);
    }
    for (int v = 0; v < V; v++) store(out + v * LANES, acc[v] * scale);
}

// The sum over rows of weight * row, times `scale`; `channels` is a multiple of 16. Each channel is added up alike,
// however many are added up together.
template <class T, class Number>
inline void weighted_sum(const T* weights, float scale, const Number* rows, int64_t stride, int64_t count,
                         int64_t channels, bf16* out) {
    int64_t c = 0;
    for (; c + 16 * LANES <= channels; c += 16 * LANES)
        weighted_sum_vectors<16>(weights, scale, rows + c, stride, count, out + c);
    for (; c + 8 * LANES <= channels; c += 8 * LANES)
        weighted_sum_vectors<8>(weights, scale, rows + c, stride, count, out + c);
    for (; c < channels; c += LANES) weighted_sum_vectors<1>(weights, scale, rows + c, stride, count, out + c);
}

struct CachedBf16Rows {
    bf16* numbers;
    int64_t stride;

    static CachedBf16Rows keys(const CacheRow& cache, int64_t head) {
        return {static_cast<bf16*>(cache.keys) + head * cache.head_stride, cache.position_stride};
    }
    static CachedBf16Rows values(const CacheRow& cache, int64_t head) {
        return {static_cast<bf16*>(cache.values) + head * cache.head_stride, cache.position_stride};
    }
    static CachedBf16Rows latents(const CacheRow& cache) { return keys(cache, 0); }
    static CachedBf16Rows rotary_keys(const CacheRow& cache, int64_t rank) {
        return {static_cast<bf16*>(cache.keys) + rank, cache.position_stride};
    }

    void write(int64_t position, const bf16* x, int64_t width) const { std::copy_n(x, width, at(position)); }

    // scores[i] = scale * query * row i.
    void multiply(const bf16* query, int64_t width, float scale, int64_t count, float* scores) const {
        for (int64_t i = 0; i < count; i++) scores[i] = dot(query, at(i), width) * scale;
    }
    // The same for a query of `rank` channels of the latent and `rope` of the rotary key behind it, each product rounded
    // as the plain model rounds it.
    static void multiply_latents(const CacheRow& cache, const bf16* query, int64_t rank, int64_t rope, float scale,
                                 int64_t count, float* scores) {
        const CachedBf16Rows rows = latents(cache);
        for (int64_t i = 0; i < count; i++) scores[i] = rounded(dot(query, rows.at(i), rank + rope)) * scale;
    }

    // out = scale * the sum of weights[i] * row i.
    void add(float* weights, float scale, int64_t count, int64_t width, bf16* out) const {
        weighted_sum(weights, scale, numbers, stride, count, width, out);
    }

   private:
    bf16* at(int64_t position) const { return numbers + position * stride; }
};

// Row i is codes * scales[i * scale_stride].
struct CachedInt8Rows {
    int8_t* codes;
    int64_t stride;
    float* scales;
    int64_t scale_stride;

    static CachedInt8Rows keys(const CacheRow& cache, int64_t head) {
        return of_head(cache, cache.keys, cache.key_scales, head);
    }
    static CachedInt8Rows values(const CacheRow& cache, int64_t head) {
        return of_head(cache, cache.values, cache.value_scales, head);
    }
    static CachedInt8Rows latents(const CacheRow& cache) {
        return {static_cast<int8_t*>(cache.keys), cache.position_stride, cache.key_scales, 2};
    }
    static CachedInt8Rows rotary_keys(const CacheRow& cache, int64_t rank) {
        return {static_cast<int8_t*>(cache.keys) + rank, cache.position_stride, cache.key_scales + 1, 2};
    }

    void write(int64_t position, const bf16* x, int64_t width) const {
        scale_at(position) = to_int8_row(x, width, at(position));
    }
    void read(int64_t position, int64_t width, bf16* out) const {
        for (int64_t c = 0; c < width; c += LANES) store(out + c, load(at(position) + c) * scale_at(position));
    }

    void multiply(const bf16* query, int64_t width, float scale, int64_t count, float* scores) const {
        const float* wide = to_floats_once(query, width);
        for (int64_t i = 0; i < count; i++) scores[i] = product(wide, i, width) * scale;
    }
    static void multiply_latents(const CacheRow& cache, const bf16* query, int64_t rank, int64_t rope, float scale,
                                 int64_t count, float* scores) {
        const CachedInt8Rows rows = latents(cache), keys = rotary_keys(cache, rank);
        const float* wide = to_floats_once(query, rank + rope);
        for (int64_t i = 0; i < count; i++)
            scores[i] = (rows.product(wide, i, rank) + keys.product(wide + rank, i, rope)) * scale;
    }

    // The weights are multiplied by the scales in place.
    void add(float* weights, float scale, int64_t count, int64_t width, bf16* out) const {
        for (int64_t i = 0; i < count; i++) weights[i] *= scale_at(i);
        weighted_sum(weights, scale, codes, stride, count, width, out);
    }

   private:
    static CachedInt8Rows of_head(const CacheRow& cache, void* codes, float* scales, int64_t head) {
        return {static_cast<int8_t*>(codes) + head * cache.head_stride, cache.position_stride,
                scales + head * cache.scale_head_stride, 1};
    }
    static const float* to_floats_once(const bf16* query, int64_t width) {
        static thread_local std::vector<float> wide;
        wide.resize(width);
        for (int64_t c = 0; c < width; c += LANES) store(&wide[c], load(query + c));
        return wide.data();
    }
    int8_t* at(int64_t position) const { return codes + position * stride; }
    float& scale_at(int64_t position) const { return scales[position * scale_stride]; }

    // `width` is a multiple of 16. In four sums, for one alone would wait for itself at each step.
    float product(const float* query, int64_t position, int64_t width) const {
        const int8_t* row = at(position);
        Floats some[4] = {};
        int64_t c = 0;
        for (; c + 4 * LANES <= width; c += 4 * LANES)
            for (int64_t k = 0; k < 4; k++) some[k] += load(query + c + k * LANES) * load(row + c + k * LANES);
        for (; c < width; c += LANES) some[0] += load(query + c) * load(row + c);
        return sum((some[0] + some[1]) + (some[2] + some[3])) * scale_at(position);
    }
};

// The first `count` positions of a cache of int8 as bfloat16, into rows of the same heads.
inline void dequantize_rows(const CacheRow& from, const CacheRow& to, int64_t heads, int64_t width, int64_t count,
                            int threads) {
    parallel_for(2 * heads, threads, [&](int64_t task) {
        const int64_t head = task / 2;
        const CachedInt8Rows source = task % 2 ? CachedInt8Rows::values(from, head) : CachedInt8Rows::keys(from, head);
        const CachedBf16Rows target = task % 2 ? CachedBf16Rows::values(to, head) : CachedBf16Rows::keys(to, head);
        for (int64_t i = 0; i < count; i++) source.read(i, width, target.numbers + i * target.stride);
    });
}

// Positions `first` to `last` of bfloat16 rows into a cache of int8.
inline void quantize_rows(const CacheRow& from, const CacheRow& to, int64_t heads, int64_t width, int64_t first,
                          int64_t last, int threads) {
    parallel_for(2 * heads, threads, [&](int64_t task) {
        const int64_t head = task / 2;
        const CachedBf16Rows source = task % 2 ? CachedBf16Rows::values(from, head) : CachedBf16Rows::keys(from, head);
        const CachedInt8Rows target = task % 2 ? CachedInt8Rows::values(to, head) : CachedInt8Rows::keys(to, head);
        for (int64_t i = first; i < last; i++) target.write(i, source.numbers + i * source.stride, width);
    });
}

// The first `count` positions of a cache of int8 latents, and of the rotary keys behind them, as bfloat16.
inline void dequantize_latents(const CacheRow& from, const CacheRow& to, int64_t rank, int64_t rope, int64_t count,
                               int threads) {
    const CachedInt8Rows latents = CachedInt8Rows::latents(from), keys = CachedInt8Rows::rotary_keys(from, rank);
    parallel_rows(count, 32, threads, [&](int64_t i) {
        bf16* row = static_cast<bf16*>(to.keys) + i * to.position_stride;
        latents.read(i, rank, row);
        keys.read(i, rope, row + rank);
    });
}

// Positions `first` to `last` of bfloat16 latents and rotary keys into a cache of int8.
inline void quantize_latents(const CacheRow& from, const CacheRow& to, int64_t rank, int64_t rope, int64_t first,
                             int64_t last, int threads) {
    const CachedInt8Rows latents = CachedInt8Rows::latents(to), keys = CachedInt8Rows::rotary_keys(to, rank);
    parallel_rows(last - first, 32, threads, [&](int64_t i) {
        const bf16* row = static_cast<const bf16*>(from.keys) + (first + i) * from.position_stride;
        latents.write(first + i, row, rank);
        keys.write(first + i, row + rank, rope);
    });
}

}  // namespace vl2
