// Products in plain vectors, for machines without AVX-512: a row of weights, or a group of a panel, is widened to floats
// once and multiplied with every row of activations.
#pragma once
#include <vector>

namespace vl2 {

inline void multiply_rows(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x, float* const* out) {
    const int64_t width = padded(w.inputs);
    const float* scales = reinterpret_cast<const float*>(w.scales);
    static thread_local std::vector<float> wide;
    wide.assign(width, 0.0f);
    for (int64_t n = first; n < last; n++) {
        if (w.kind == INT8) {
            const int8_t* row = reinterpret_cast<const int8_t*>(w.codes) + n * w.inputs;
            for (int64_t k = 0; k < w.inputs; k++) wide[k] = row[k];
        } else {
            const bf16* row = reinterpret_cast<const bf16*>(w.codes) + n * w.inputs;
            for (int64_t k = 0; k < w.inputs; k++) wide[k] = to_float(row[k]);
        }
        for (int m = 0; m < M; m++) {
            Floats even = {}, odd = {};
            for (int64_t k = 0; k < width; k += 2 * LANES) {
                even += load(x[m] + k) * load(&wide[k]);
                odd += load(x[m] + k + LANES) * load(&wide[k + LANES]);
            }
            const float total = sum(even + odd);
            out[m][n - first] = w.kind == INT8 ? total * scales[n] : total;
        }
    }
}

inline void multiply_panels(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x,
                            float* const* out) {
    const int64_t groups = w.groups();
    static thread_local std::vector<float> totals;
    for (int64_t n = first; n < last; n += PANEL) {
        totals.assign(M * PANEL, 0.0f);
        for (int64_t g = 0; g < groups; g++) {
            const int64_t block = n / PANEL * groups + g;
            const uint8_t* codes = w.codes + block * BLOCK_BYTES;
            float values[GROUP * PANEL], scale[PANEL];
            for (int word = 0; word < 128; word++) {
                const int both = codes[2 * word] | codes[2 * word + 1] << 8;
                const int row = word % 32 / 2, input = 8 * (word / 32) + word % 2;
                for (int j = 0; j < 4; j++) values[(input + 2 * j) * PANEL + row] = (both >> 4 * j & 15) - 8;
            }
            for (int row = 0; row < PANEL; row++) {
                uint16_t half;
                std::memcpy(&half, w.scales + (block * PANEL + row) * 2, 2);
                scale[row] = from_half(half);
            }
            for (int m = 0; m < M; m++) {
                Floats acc = {};
                for (int k = 0; k < GROUP; k++) acc += load(values + k * PANEL) * to_float(x[m][g * GROUP + k]);
                store(&totals[m * PANEL], load(&totals[m * PANEL]) + acc * load(scale));
            }
        }
        for (int m = 0; m < M; m++)
            for (int64_t row = n; row < n + PANEL && row < last; row++)
                out[m][row - first] = totals[m * PANEL + row - n];
    }
}

// Outputs first to last of M rows; `first` is a multiple of 16, and so is `last` unless it is the last of all.
inline void multiply(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x, float* const* out) {
    (w.kind == INT4 ? multiply_panels : multiply_rows)(w, first, last, M, x, out);
}

}  // namespace vl2
