// Attention of one new position over the cache of its row, with the rotary embedding before it.
//
// In: the projected query, key and value (or latent) of a row. Out: the attended row of one head, and the new key and
// value in the cache. Called by decode.h, a task for each sequence and head of keys. Each row is computed over exactly the
// positions that it holds: no mask, no padding, nothing of the rows beside it. All is portable.
#pragma once
#include "model.h"
#include "row_ops.h"

namespace vl2 {

// Channel i with channel i + half.
inline void rotate_halves(const float* x, const float* cosine, const float* sine, int64_t half, bf16* out) {
    for (int64_t i = 0; i < half; i++) {
        out[i] = to_bf16(x[i] * cosine[i] - x[i + half] * sine[i]);
        out[i + half] = to_bf16(x[i + half] * cosine[i] + x[i] * sine[i]);
    }
}

// Channel 2i with 2i + 1; all first members before all second ones.
inline void rotate_pairs(const float* x, const float* cosine, const float* sine, int64_t half, bf16* out) {
    for (int64_t i = 0; i < half; i++) {
        out[i] = to_bf16(x[2 * i] * cosine[i] - x[2 * i + 1] * sine[i]);
        out[i + half] = to_bf16(x[2 * i + 1] * cosine[i] + x[2 * i] * sine[i]);
    }
}

// The weights of the softmax in place, unnormalized; returns their sum.
inline float softmax(float* scores, int64_t count) {
    float largest = scores[0];
    for (int64_t i = 1; i < count; i++) largest = std::max(largest, scores[i]);
    Floats total = {};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const Floats p = exponential(load(scores + i) - largest);
        store(scores + i, p);
        total += p;
    }
    float rest = 0;
    for (; i < count; i++) {
        scores[i] = exponential(splat(scores[i] - largest))[0];
        rest += scores[i];
    }
    return sum(total) + rest;
}

// `V` vectors of the sum over rows of weight * row, into `out`. The sums stay in registers over all rows.
template <int V, class T>
inline void weighted_sum_vectors(const T* weights, float scale, const bf16* rows, int64_t stride, int64_t count,
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
template <class T>
inline void weighted_sum(const T* weights, float scale, const bf16* rows, int64_t stride, int64_t count,
                         int64_t channels, bf16* out) {
    int64_t c = 0;
    for (; c + 16 * LANES <= channels; c += 16 * LANES)
        weighted_sum_vectors<16>(weights, scale, rows + c, stride, count, out + c);
    for (; c + 8 * LANES <= channels; c += 8 * LANES)
        weighted_sum_vectors<8>(weights, scale, rows + c, stride, count, out + c);
    for (; c < channels; c += LANES) weighted_sum_vectors<1>(weights, scale, rows + c, stride, count, out + c);
}

// Plain attention of one row and one head of keys, with all the query heads that share it.
inline void attend_head(const Model& model, const Step& step, int64_t layer, int64_t row, int64_t head,
                        const bf16* query, const bf16* key, const bf16* value, bf16* out) {
    const int64_t C = model.head_dim, half = C / 2, length = step.lengths[row], shared = model.heads / model.kv_heads;
    const float *cosine = step.cosines + row * half, *sine = step.sines + row * half;
    const CacheRow& cache = step.cache_row(layer, row);
    const int64_t stride = cache.position_stride;
    bf16 *keys = cache.keys + head * cache.head_stride, *values = cache.values + head * cache.head_stride;
    static thread_local std::vector<float> scores, unrotated;
    static thread_local std::vector<bf16> rotated;
    scores.resize(length + 1);
    unrotated.resize(C);
    rotated.resize(C);
    for (int64_t c = 0; c < C; c++) unrotated[c] = to_float(key[head * C + c]);
    rotate_halves(unrotated.data(), cosine, sine, half, keys + length * stride);
    std::copy_n(value + head * C, C, values + length * stride);
    const float scale = 1.0f / std::sqrt(static_cast<float>(C));
    for (int64_t q = head * shared; q < (head + 1) * shared; q++) {
        for (int64_t c = 0; c < C; c++) unrotated[c] = to_float(query[q * C + c]);
        rotate_halves(unrotated.data(), cosine, sine, half, rotated.data());
        for (int64_t i = 0; i <= length; i++) scores[i] = dot(rotated.data(), keys + i * stride, C) * scale;
        const float total = softmax(scores.data(), length + 1);
        weighted_sum(scores.data(), 1.0f / total, values, stride, length + 1, C, out + q * C);
    }
}

// Write the normed latent and the rotated shared key of a row into the cache.
inline void write_latent(const Model& model, const Step& step, int64_t layer, int64_t row, const bf16* latent) {
    const int64_t half = model.rope_dim / 2;
    const CacheRow& cache = step.cache_row(layer, row);
    bf16* to = cache.keys + step.lengths[row] * cache.position_stride;
    normalize(latent, model.layers[layer].latent_norm, model.rank, model.latent_eps, to);
    static thread_local std::vector<float> shared;
    shared.resize(model.rope_dim);
    for (int64_t c = 0; c < model.rope_dim; c++) shared[c] = to_float(latent[model.rank + c]);
    rotate_pairs(shared.data(), step.cosines + row * half, step.sines + row * half, half, to + model.rank);
}

// Latent attention of one row and one head in its absorbed form: the query is taken into the space of the latent.
inline void attend_latent(const Model& model, const Step& step, int64_t layer, int64_t row, int64_t head,
                          const bf16* query, bf16* out) {
    const int64_t R = model.rank, nope = model.nope_dim, rope = model.rope_dim, V = model.value_dim, half = rope / 2;
    const bf16* q = query + head * (nope + rope);
    const bf16* expand = reinterpret_cast<const bf16*>(model.layers[layer].value.codes) + head * (nope + V) * R;
    static thread_local std::vector<float> scores, unrotated;
    static thread_local std::vector<bf16> absorbed, attended;
    absorbed.resize(R + rope);
    weighted_sum(q, 1.0f, expand, R, nope, R, absorbed.data());
    unrotated.resize(rope);
    for (int64_t c = 0; c < rope; c++) unrotated[c] = to_float(q[nope + c]);
    rotate_pairs(unrotated.data(), step.cosines + row * half, step.sines + row * half, half, &absorbed[R]);

    const int64_t count = step.lengths[row] + 1;
    const CacheRow& cache = step.cache_row(layer, row);
    const int64_t stride = cache.position_stride;
    const bf16* latents = cache.keys;
    const float scale = 1.0f / std::sqrt(static_cast<float>(nope + rope));
    scores.resize(count);
    for (int64_t i = 0; i < count; i++)
        scores[i] = rounded(dot(absorbed.data(), latents + i * stride, R + rope)) * scale;
    const float total = softmax(scores.data(), count);
    attended.resize(R);
    weighted_sum(scores.data(), 1.0f / total, latents, stride, count, R, attended.data());
    for (int64_t v = 0; v < V; v++) out[head * V + v] = to_bf16(dot(attended.data(), expand + (nope + v) * R, R));
}

}  // namespace vl2
