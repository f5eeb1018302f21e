// Attention of one new position over the cache of its row, with the rotary embedding before it.
//
// In: the projected query, key and value (or latent) of a row. Out: the attended row of one head, and the new key and
// value in the cache. Called by decode.h, a task for each sequence and head of keys. Each row is computed over exactly the
// positions that it holds: no mask, no padding, nothing of the rows beside it. The cache is of bfloat16 or of int8
// (cached_rows.h). All is portable.
#pragma once
#include "cached_rows.h"
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

// Plain attention of one row and one head of keys, with all the query heads that share it.
template <class Rows>
inline void attend_head(const Model& model, const Step& step, int64_t layer, int64_t row, int64_t head,
                        const bf16* query, const bf16* key, const bf16* value, bf16* out) {
    const int64_t C = model.head_dim, half = C / 2, length = step.lengths[row], shared = model.heads / model.kv_heads;
    const float *cosine = step.cosines + row * half, *sine = step.sines + row * half;
    const CacheRow& cache = step.cache_row(layer, row);
    const Rows keys = Rows::keys(cache, head), values = Rows::values(cache, head);
    static thread_local std::vector<float> scores, unrotated;
    static thread_local std::vector<bf16> rotated;
    scores.resize(length + 1);
    unrotated.resize(C);
    rotated.resize(C);
    for (int64_t c = 0; c < C; c++) unrotated[c] = to_float(key[head * C + c]);
    rotate_halves(unrotated.data(), cosine, sine, half, rotated.data());
    keys.write(length, rotated.data(), C);
    values.write(length, value + head * C, C);
    const float scale = 1.0f / std::sqrt(static_cast<float>(C));
    for (int64_t q = head * shared; q < (head + 1) * shared; q++) {
        for (int64_t c = 0; c < C; c++) unrotated[c] = to_float(query[q * C + c]);
        rotate_halves(unrotated.data(), cosine, sine, half, rotated.data());
        keys.multiply(rotated.data(), C, scale, length + 1, scores.data());
        const float total = softmax(scores.data(), length + 1);
        values.add(scores.data(), 1.0f / total, length + 1, C, out + q * C);
    }
}

// Write the normed latent and the rotated shared key of a position into the cache; the angles are of that position.
template <class Rows>
inline void write_latent(const Model& model, const Layer& layer, const CacheRow& cache, int64_t position,
                         const float* cosine, const float* sine, const bf16* latent) {
    static thread_local std::vector<float> shared;
    static thread_local std::vector<bf16> made;
    shared.resize(model.rope_dim);
    made.resize(std::max(model.rank, model.rope_dim));
    normalize(latent, layer.latent_norm, model.rank, model.latent_eps, made.data());
    Rows::latents(cache).write(position, made.data(), model.rank);
    for (int64_t c = 0; c < model.rope_dim; c++) shared[c] = to_float(latent[model.rank + c]);
    rotate_pairs(shared.data(), cosine, sine, model.rope_dim / 2, made.data());
    Rows::rotary_keys(cache, model.rank).write(position, made.data(), model.rope_dim);
}

// Latent attention of one row and one head in its absorbed form: the query is taken into the space of the latent.
template <class Rows>
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
    const float scale = 1.0f / std::sqrt(static_cast<float>(nope + rope));
    scores.resize(count);
    Rows::multiply_latents(cache, absorbed.data(), R, rope, scale, count, scores.data());
    const float total = softmax(scores.data(), count);
    attended.resize(R);
    Rows::latents(cache).add(scores.data(), 1.0f / total, count, R, attended.data());
    for (int64_t v = 0; v < V; v++) out[head * V + v] = to_bf16(dot(attended.data(), expand + (nope + v) * R, R));
}

}  // namespace vl2
