// What a prefill and the encoder do between products: attention of many queries, norms, activations, the sum over a token's
// experts.
#pragma once
#include <algorithm>

#include "attention.h"
#include "attention_many.h"
#include "attention_tiles.h"
#include "products.h"
#include "threads.h"

namespace vl2 {

#if defined(__AVX512BF16__) && defined(__AVX512BW__)

// Whether the shape was within what the kernel does; nothing is written where it was not.
inline bool attend_many(const Attention& a, int threads) {
    if (a.channels % 2 || a.channels > MOST_CHANNELS || a.value_channels > MOST_VALUE_CHANNELS) return false;
    run_team(threads, [&](Team& team, int) {
        int phase = 0;
        team.each(a.batches * a.heads, phase, [&](int64_t task) {
#if defined(__AMX_BF16__)
            attend_in_tiles(a, task / a.heads, task % a.heads);
#else
            attend_rows(a, task / a.heads, task % a.heads);
#endif
        });
    });
    return true;
}

#else

inline bool attend_many(const Attention&, int) { return false; }

#endif

// Rows by their root mean squares, times the weight.
inline void normalise_rows(const bf16* x, const bf16* weight, int64_t rows, int64_t width, double eps, bf16* out,
                           int threads) {
    run_team(threads, [&](Team& team, int) {
        int phase = 0;
        team.each((rows + 15) / 16, phase, [&](int64_t task) {
            for (int64_t r = task * 16; r < std::min(rows, task * 16 + 16); r++)
                normalise(x + r * width, weight, width, eps, out + r * width);
        });
    });
}

// Channel i of every head with channel i + half; cosines and sines are [rows, half].
inline void rotate_rows(const bf16* x, const float* cosines, const float* sines, int64_t rows, int64_t heads,
                        int64_t half, bf16* out, int threads) {
    run_team(threads, [&](Team& team, int) {
        int phase = 0;
        team.each((rows + 15) / 16, phase, [&](int64_t task) {
            for (int64_t r = task * 16; r < std::min(rows, task * 16 + 16); r++) {
                const float *cosine = cosines + r * half, *sine = sines + r * half;
                for (int64_t h = r * heads; h < (r + 1) * heads; h++) {
                    const bf16 *first = x + 2 * h * half, *second = first + half;
                    bf16* to = out + 2 * h * half;
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
            }
        });
    });
}

// silu(gate) * up of a row, rounded where the plain model rounds. It may be written over the gate.
inline void gate_row(const bf16* gate, const bf16* up, int64_t width, bf16* out) {
    int64_t n = 0;
    for (; n + LANES <= width; n += LANES) store(out + n, rounded(silu(load(gate + n))) * load(up + n));
    for (; n < width; n++) {
        const float x = to_float(gate[n]);
        out[n] = to_bf16(rounded(x / (1.0f + std::exp(-x))) * to_float(up[n]));
    }
}

// The same of rows [gate | up]; `width` is that of the result.
inline void gate_rows(const bf16* rows, int64_t count, int64_t width, bf16* out, int threads) {
    run_team(threads, [&](Team& team, int) {
        int phase = 0;
        team.each((count + 15) / 16, phase, [&](int64_t task) {
            for (int64_t r = task * 16; r < std::min(count, task * 16 + 16); r++) {
                const bf16* gate = rows + 2 * r * width;
                gate_row(gate, gate + width, width, out + r * width);
            }
        });
    });
}

// out[t] = sum over k of weight[t, k] * rows[place[t, k]], in float32 and in the order of k.
inline void sum_slots(const bf16* rows, const int64_t* place, const float* weight, int64_t tokens, int64_t slots,
                      int64_t width, bf16* out, int threads) {
    run_team(threads, [&](Team& team, int) {
        int phase = 0;
        team.each((tokens + 15) / 16, phase, [&](int64_t task) {
            for (int64_t t = task * 16; t < std::min(tokens, task * 16 + 16); t++) {
                int64_t n = 0;
                for (; n + LANES <= width; n += LANES) {
                    Floats total = {};
                    for (int64_t k = t * slots; k < (t + 1) * slots; k++)
                        total += weight[k] * load(rows + place[k] * width + n);
                    store(out + t * width + n, total);
                }
                for (; n < width; n++) {
                    float total = 0;
                    for (int64_t k = t * slots; k < (t + 1) * slots; k++)
                        total += weight[k] * to_float(rows[place[k] * width + n]);
                    out[t * width + n] = to_bf16(total);
                }
            }
        });
    });
}

}  // namespace vl2
