// `multiply` for machines with none of AVX-512, AVX2 and NEON: plain vectors that the compiler lowers.
//
// In and out as matmul.h says, which alone includes this. Weights are widened to floats in registers and multiplied
// with one, two or four rows of activations, which are floats already. A row's sum is made in the same order whatever
// rows are beside it.
#pragma once
#include <algorithm>
#include <vector>

namespace vl2 {

// Rows of activations as floats, one behind another.
inline const float* to_floats(const bf16* const* x, int M, int64_t width) {
    static thread_local std::vector<float> wide;
    wide.resize(M * width);
    for (int m = 0; m < M; m++)
        for (int64_t k = 0; k < width; k += LANES) store(&wide[m * width + k], load(x[m] + k));
    return wide.data();
}

// One row of weights with R rows of activations; two sums each, that one need not wait for the other.
template <int R, class T>
inline void row_microkernel(const T* row, int64_t inputs, const float* x, int64_t width, float* totals) {
    Floats even[R] = {}, odd[R] = {};
    for_each_group(row, inputs, [&](const T* from, int64_t k) {
        const Floats a = load(from), b = load(from + LANES);
        for (int r = 0; r < R; r++) {
            even[r] += load(x + r * width + k) * a;
            odd[r] += load(x + r * width + k + LANES) * b;
        }
    });
    for (int r = 0; r < R; r++) totals[r] = sum(even[r] + odd[r]);
}

template <class T>
inline void multiply_rows(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x,
                          float* const* out) {
    const int64_t width = padded(w.inputs);
    const float* wide = to_floats(x, M, width);
    const float* scales = sizeof(T) == 1 ? reinterpret_cast<const float*>(w.scales) : nullptr;
    for (int64_t n = first; n < last; n++) {
        const T* row = reinterpret_cast<const T*>(w.codes) + n * w.inputs;
        for (int m = 0; m < M; m += 2) {
            float totals[2];
            if (m + 1 < M) row_microkernel<2>(row, w.inputs, wide + m * width, width, totals);
            else row_microkernel<1>(row, w.inputs, wide + m * width, width, totals);
            for (int r = 0; r < 2 && m + r < M; r++)
                out[m + r][n - first] = scales ? totals[r] * scales[n] : totals[r];
        }
    }
}

inline void multiply_bf16(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x,
                          float* const* out) {
    multiply_rows<bf16>(w, first, last, M, x, out);
}

inline void multiply_int8(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x,
                          float* const* out) {
    multiply_rows<int8_t>(w, first, last, M, x, out);
}

inline Floats halves_to_floats(const uint8_t* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    const Words words = __builtin_convertvector(halves, Words);
    const Floats value = bit_cast<Floats>((words & 0x7fff) << 13) * bit_cast<float>(0x77800000u);
    return bit_cast<Floats>(bit_cast<Words>(value) | (words & 0x8000) << 16);
}

// A panel of 16 outputs with R rows of activations.
static_assert(LANES == PANEL);
template <int R>
inline void int4_microkernel(const uint8_t* codes, const uint8_t* scales, int64_t groups, const float* x, int64_t width,
                           Floats* totals) {
    for (int64_t g = 0; g < groups; g++, codes += BLOCK_BYTES, scales += 2 * PANEL) {
        Floats acc[R] = {};
        for (int part = 0; part < 4; part++) {
            // A lane is an output; its low and its high half hold four even and four odd inputs.
            Words words;
            std::memcpy(&words, codes + part * sizeof words, sizeof words);
            for (int j = 0; j < 4; j++) {
                const float* inputs = x + g * GROUP + 8 * part + 2 * j;
                const Floats a = __builtin_convertvector(bit_cast<Ints>(words >> 4 * j & 15), Floats) - 8.0f;
                const Floats b = __builtin_convertvector(bit_cast<Ints>(words >> (4 * j + 16) & 15), Floats) - 8.0f;
                for (int r = 0; r < R; r++) acc[r] += a * inputs[r * width];
                for (int r = 0; r < R; r++) acc[r] += b * inputs[r * width + 1];
            }
        }
        const Floats scale = halves_to_floats(scales);
        for (int r = 0; r < R; r++) totals[r] += acc[r] * scale;
    }
}

inline void multiply_int4(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x,
                            float* const* out) {
    const int64_t groups = w.groups(), width = padded(w.inputs);
    const float* wide = to_floats(x, M, width);
    for (int64_t n = first; n < last; n += PANEL) {
        const int64_t block = n / PANEL * groups;
        const uint8_t *codes = w.codes + block * BLOCK_BYTES, *scales = w.scales + block * PANEL * 2;
        for (int m = 0, count; m < M; m += count) {
            count = M - m >= 4 ? 4 : 1;
            Floats totals[4] = {};
            if (count == 4) int4_microkernel<4>(codes, scales, groups, wide + m * width, width, totals);
            else int4_microkernel<1>(codes, scales, groups, wide + m * width, width, totals);
            for (int r = 0; r < count; r++) {
                float lanes[LANES];
                store(lanes, totals[r]);
                std::copy_n(lanes, std::min(PANEL, last - n), out[m + r] + n - first);
            }
        }
    }
}

}  // namespace vl2
