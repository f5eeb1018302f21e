// What a prefill and the encoder do to rows between their products: norms, rotary embedding, activations, the sum over
// experts.
//
// In: bfloat16 rows of any width, one behind another. Out: bfloat16 rows, rounded wherever the plain model rounds.
// Called by kernels.cpp for modules that Python runs one by one, by fused_prefill.h and encode.h, and `normalize` by a
// decode step. A row is computed by itself: its bits depend neither on the rows beside it nor on the number of threads.
// All is portable.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "matmul.h"
#include "threads.h"

namespace vl2 {

// Rows a task: enough that taking the task costs nothing beside them, few enough that threads end together.
constexpr int64_t ROWS_AT_ONCE = 16;

// weight * round(x / rms(x)), rounded as the plain model rounds.
inline void normalize(const bf16* x, const bf16* weight, int64_t width, double eps, bf16* out) {
    Floats some[4] = {};  // one sum alone would wait for itself at each step
    int64_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES)
        for (int64_t k = 0; k < 4; k++) some[k] += load(x + i + k * LANES) * load(x + i + k * LANES);
    for (; i + LANES <= width; i += LANES) some[0] += load(x + i) * load(x + i);
    float total = sum((some[0] + some[1]) + (some[2] + some[3]));
    for (; i < width; i++) total += to_float(x[i]) * to_float(x[i]);
    const float scale = 1.0f / std::sqrt(total / static_cast<float>(width) + static_cast<float>(eps));
    for (i = 0; i + LANES <= width; i += LANES) store(out + i, rounded(load(x + i) * scale) * load(weight + i));
    for (; i < width; i++) out[i] = to_bf16(rounded(to_float(x[i]) * scale) * to_float(weight[i]));
}

// Rows by their root mean squares, times the weight.
inline void normalize_rows(const bf16* x, const bf16* weight, int64_t rows, int64_t width, double eps, bf16* out,
                           int threads) {
    parallel_rows(rows, ROWS_AT_ONCE, threads,
                  [&](int64_t r) { normalize(x + r * width, weight, width, eps, out + r * width); });
}

// Rows less their means, by their deviations, times the weight, plus the bias.
inline void layer_norm_rows(const bf16* x, const bf16* weight, const bf16* bias, int64_t rows, int64_t width,
                            double eps, bf16* out, int threads) {
    // Four vectors at a time: a sum alone would wait for itself at each step. Behind the last channel they hold zeros,
    // which add nothing to the mean, and of which each adds mean * mean to the squares: that is taken off again.
    const int64_t padded_width = round_up(width, 4 * LANES), num_zeros = padded_width - width;
    const auto sum_of = [&](const float* row, const auto& value) {
        Floats some[4] = {};
        for (int64_t i = 0; i < padded_width; i += 4 * LANES)
            for (int64_t k = 0; k < 4; k++) some[k] += value(load(row + i + k * LANES));
        return sum((some[0] + some[1]) + (some[2] + some[3]));
    };
    parallel_for((rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE, threads, [&](int64_t task) {
        static thread_local std::vector<float> kept;
        kept.assign(3 * padded_width, 0.0f);
        float *row = kept.data(), *weights = row + padded_width, *biases = weights + padded_width;
        for (int64_t i = 0; i < width; i++) {
            weights[i] = to_float(weight[i]);
            biases[i] = to_float(bias[i]);
        }
        for (int64_t r = task * ROWS_AT_ONCE; r < std::min(rows, (task + 1) * ROWS_AT_ONCE); r++) {
            const bf16* from = x + r * width;
            int64_t i = 0;
            for (; i + LANES <= width; i += LANES) store(row + i, load(from + i));
            for (; i < width; i++) row[i] = to_float(from[i]);
            const float mean = sum_of(row, [](Floats value) { return value; }) / static_cast<float>(width);
            const float squares = sum_of(row, [&](Floats value) { return (value - mean) * (value - mean); });
            const float variance = (squares - static_cast<float>(num_zeros) * mean * mean) / static_cast<float>(width);
            const float scale = 1.0f / std::sqrt(variance + static_cast<float>(eps));
            const auto normed = [&](int64_t at) {
                return (load(row + at) - mean) * scale * load(weights + at) + load(biases + at);
            };
            for (i = 0; i + LANES <= width; i += LANES) store_fast(out + r * width + i, normed(i));
            if (i < width) {
                bf16 last[LANES];
                store_fast(last, normed(i));
                std::copy(last, last + width - i, out + r * width + i);
            }
        }
    });
}

// The activation of every number, in place.
inline void activate_all(bf16* x, int64_t count, int64_t activation, int threads) {
    constexpr int64_t AT_ONCE = 1 << 14;
    parallel_for((count + AT_ONCE - 1) / AT_ONCE, threads, [&](int64_t task) {
        const int64_t end = std::min(count, (task + 1) * AT_ONCE);
        int64_t n = task * AT_ONCE;
        for (; n + LANES <= end; n += LANES) store_fast(x + n, activate(load(x + n), activation));
        for (; n < end; n++) x[n] = to_bf16(activate(splat(to_float(x[n])), activation)[0]);
    });
}

// The slope of the tanh GELU: s + x * s * (1 - s) * u', where s is the logistic of u.
inline Floats gelu_slope(Floats x) {
    const Floats s = logistic(1.5957691216f * (x + 0.044715f * x * x * x));
    return s + x * s * (1.0f - s) * (1.5957691216f + 0.2140644488f * x * x);
}

// out = grad times the slope of the tanh GELU at x, in float32 until it is stored.
inline void gelu_gradient(const bf16* x, const bf16* grad, int64_t count, bf16* out, int threads) {
    constexpr int64_t AT_ONCE = 1 << 14;
    parallel_for((count + AT_ONCE - 1) / AT_ONCE, threads, [&](int64_t task) {
        const int64_t end = std::min(count, (task + 1) * AT_ONCE);
        int64_t n = task * AT_ONCE;
        for (; n + LANES <= end; n += LANES) store_fast(out + n, load(grad + n) * gelu_slope(load(x + n)));
        for (; n < end; n++) out[n] = to_bf16(to_float(grad[n]) * gelu_slope(splat(to_float(x[n])))[0]);
    });
}

// Channel i of every head with channel i + half; cosines and sines are [rows, half]. Strides of what comes out are in
// numbers.
inline void rotate_rows(const bf16* x, const float* cosines, const float* sines, int64_t rows, int64_t heads,
                        int64_t half, bf16* out, int64_t out_row, int64_t out_head, int threads) {
    parallel_rows(rows, ROWS_AT_ONCE, threads, [&](int64_t r) {
        const float *cosine = cosines + r * half, *sine = sines + r * half;
        for (int64_t h = 0; h < heads; h++) {
            const bf16 *first = x + 2 * (r * heads + h) * half, *second = first + half;
            bf16* to = out + r * out_row + h * out_head;
            int64_t i = 0;
            for (; i + LANES <= half; i += LANES) {
                const Floats a = load(first + i), b = load(second + i);
                store(to + i, a * load(cosine + i) - b * load(sine + i));
                store(to + half + i, b * load(cosine + i) + a * load(sine + i));
            }
            for (; i < half; i++) {
                const float a = to_float(first[i]), b = to_float(second[i]);
                to[i] = to_bf16(a * cosine[i] - b * sine[i]);
                to[half + i] = to_bf16(b * cosine[i] + a * sine[i]);
            }
        }
    });
}

// silu(gate) * up of a row, rounded where the plain model rounds. It may be written over the gate.
inline void swiglu_row(const bf16* gate, const bf16* up, int64_t width, bf16* out) {
    int64_t n = 0;
    for (; n + LANES <= width; n += LANES) store(out + n, rounded(silu(load(gate + n))) * load(up + n));
    for (; n < width; n++) {
        const float x = to_float(gate[n]);
        out[n] = to_bf16(rounded(x / (1.0f + std::exp(-x))) * to_float(up[n]));
    }
}

// The same as the kernel of gated MLPs does it, with the bits of that; `width` is a multiple of 16.
inline void swiglu_row_fast(const bf16* gate, const bf16* up, int64_t width, bf16* out) {
    for (int64_t n = 0; n < width; n += LANES) store_fast(out + n, rounded(fast_silu(load(gate + n))) * load(up + n));
}

// The same of rows [gate | up]; `width` is that of the result.
inline void swiglu_rows(const bf16* rows, int64_t count, int64_t width, bool fast, bf16* out, int threads) {
    parallel_rows(count, ROWS_AT_ONCE, threads, [&](int64_t r) {
        const bf16* gate = rows + 2 * r * width;
        if (fast) swiglu_row_fast(gate, gate + width, width, out + r * width);
        else swiglu_row(gate, gate + width, width, out + r * width);
    });
}

// out[t] = sum over k of weight[t, k] * rows[row_index[t, k]], in float32 and in the order of k; rounded, and added to
// each of two residuals, which may be null, and rounded.
inline void combine_experts(const bf16* rows, const int64_t* row_index, const float* weight, int64_t tokens,
                            int64_t slots, int64_t width, const bf16* residual, const bf16* second_residual, bf16* out,
                            int threads) {
    parallel_rows(tokens, ROWS_AT_ONCE, threads, [&](int64_t t) {
        int64_t n = 0;
        for (; n + LANES <= width; n += LANES) {
            Floats total = {};
            for (int64_t k = t * slots; k < (t + 1) * slots; k++)
                total += weight[k] * load(rows + row_index[k] * width + n);
            if (residual) total = load(residual + t * width + n) + rounded(total);
            if (second_residual) total = load(second_residual + t * width + n) + rounded(total);
            store(out + t * width + n, total);
        }
        for (; n < width; n++) {
            float total = 0;
            for (int64_t k = t * slots; k < (t + 1) * slots; k++)
                total += weight[k] * to_float(rows[row_index[k] * width + n]);
            if (residual) total = to_float(residual[t * width + n]) + rounded(total);
            if (second_residual) total = to_float(second_residual[t * width + n]) + rounded(total);
            out[t * width + n] = to_bf16(total);
        }
    });
}

}  // namespace vl2
