// `multiply` with AVX2 and FMA, for the many processors that have no AVX-512.
//
// In and out as matmul.h says, which alone includes this. bfloat16 and int8 lie row by row and are widened to floats in
// registers; lanes are inputs. int4 lies in panels: lanes are outputs, and each holds pairs of four-bit codes, so
// activations become 16-bit integers, a scale to each group of 32, which keeps them as exactly as bfloat16 does; one
// instruction multiplies two codes with two of them.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace vl2 {

constexpr int ROW_TILE = 3;       // rows of inputs at a time: four sums each, which 16 registers just hold
constexpr int INT4_ROW_TILE = 4;  // the same for panels, with two sums each

inline __m256 load_eight(const bf16* from) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

inline __m256 load_eight(const int8_t* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}

// Rows of activations as floats, one behind another.
inline const float* to_floats(const bf16* const* x, int M, int64_t width) {
    static thread_local std::vector<float> wide;
    wide.resize(M * width);
    for (int m = 0; m < M; m++)
        for (int64_t k = 0; k < width; k += 8) _mm256_storeu_ps(&wide[m * width + k], load_eight(x[m] + k));
    return wide.data();
}

// One row of weights with R rows of activations, which are filled up with zeros to `width`.
template <int R, class T>
inline void row_microkernel(const T* row, int64_t inputs, const float* x, int64_t width, float* totals) {
    __m256 acc[R][4];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < 4; j++) acc[r][j] = _mm256_setzero_ps();
    for_each_group(row, inputs, [&](const T* from, int64_t k) {
        for (int j = 0; j < 4; j++) {
            const __m256 weights = load_eight(from + 8 * j);
            for (int r = 0; r < R; r++)
                acc[r][j] = _mm256_fmadd_ps(weights, _mm256_loadu_ps(x + r * width + k + 8 * j), acc[r][j]);
        }
    });
    for (int r = 0; r < R; r++)
        totals[r] = sum(_mm256_add_ps(_mm256_add_ps(acc[r][0], acc[r][1]), _mm256_add_ps(acc[r][2], acc[r][3])));
}

template <class T>
inline void multiply_rows(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x,
                          float* const* out) {
    const int64_t width = padded(w.inputs);
    const float* wide = to_floats(x, M, width);
    const float* scales = sizeof(T) == 1 ? reinterpret_cast<const float*>(w.scales) : nullptr;
    for (int64_t n = first; n < last; n++) {
        const T* row = reinterpret_cast<const T*>(w.codes) + n * w.inputs;
        for (int m = 0; m < M; m += ROW_TILE) {
            float totals[ROW_TILE];
            const int count = std::min(ROW_TILE, M - m);
            const float* inputs = wide + m * width;
            if (count == 3) row_microkernel<3>(row, w.inputs, inputs, width, totals);
            else if (count == 2) row_microkernel<2>(row, w.inputs, inputs, width, totals);
            else row_microkernel<1>(row, w.inputs, inputs, width, totals);
            for (int r = 0; r < count; r++) out[m + r][n - first] = scales ? totals[r] * scales[n] : totals[r];
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

// Rows of activations as 16-bit integers.
struct Int16Groups {
    std::vector<int16_t> values;  // [rows, width]
    std::vector<float> scales;    // [rows, groups]
    std::vector<int32_t> offsets;  // [rows, groups], eight times the sum of the values: codes lie 8 above the weights

    void set(const bf16* const* x, int M, int64_t groups) {
        values.resize(M * groups * GROUP);
        scales.resize(M * groups);
        offsets.resize(M * groups);
        for (int m = 0; m < M; m++)
            for (int64_t g = 0; g < groups; g++) set_group(x[m] + g * GROUP, m * groups + g);
    }

   private:
    void set_group(const bf16* from, int64_t at) {
        // Without their signs, bfloat16 numbers are in the order of their bits; infinity and NaN come last.
        uint16_t largest = 0;
        for (int k = 0; k < GROUP; k++) largest = std::max<uint16_t>(largest, from[k] & 0x7fff);
        const float high = to_float(largest);
        const bool is_finite = largest < 0x7f80;
        // Below 1e-30 the inverse would overflow, and a product with it is nothing beside any other.
        const float inverse = is_finite && high > 1e-30f ? 32767.0f / high : 0.0f;
        int32_t total = 0;
        int16_t* const to = &values[at * GROUP];
        for (int k = 0; k < GROUP; k += 16) {
            const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(load_eight(from + k), _mm256_set1_ps(inverse)));
            const __m256i rest = _mm256_cvtps_epi32(_mm256_mul_ps(load_eight(from + k + 8), _mm256_set1_ps(inverse)));
            const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, rest), 0xd8);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k), packed);
        }
        for (int k = 0; k < GROUP; k++) total += to[k];
        offsets[at] = 8 * total;
        scales[at] = is_finite ? high / 32767.0f : NAN;
    }
};

// A panel of 16 outputs with R rows of activations.
template <int R>
inline void int4_microkernel(const uint8_t* codes, const uint8_t* scales, int64_t groups, const Int16Groups& x,
                             int64_t row, float (*out)[PANEL]) {
    const __m256i lowest = _mm256_set1_epi32(0x000f000f);
    __m256 totals[R][2];
    for (int r = 0; r < R; r++) totals[r][0] = totals[r][1] = _mm256_setzero_ps();
    for (int64_t g = 0; g < groups; g++, codes += BLOCK_BYTES, scales += 2 * PANEL) {
        __m256i acc[R][2];
        for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
        for (int part = 0; part < 4; part++) {
            // A lane is an output; its low and its high half hold four even and four odd inputs.
            const __m256i* const from = reinterpret_cast<const __m256i*>(codes) + 2 * part;
            __m256i words[2] = {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
            for (int j = 0; j < 4; j++) {
                const __m256i a = _mm256_and_si256(words[0], lowest), b = _mm256_and_si256(words[1], lowest);
                for (int r = 0; r < R; r++) {
                    int32_t pair;
                    std::memcpy(&pair, &x.values[((row + r) * groups + g) * GROUP + 8 * part + 2 * j], sizeof pair);
                    const __m256i inputs = _mm256_set1_epi32(pair);
                    acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(a, inputs));
                    acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(b, inputs));
                }
                for (__m256i& word : words) word = _mm256_srli_epi32(word, 4);
            }
        }
        for (int half = 0; half < 2; half++) {
            const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales) + half));
            for (int r = 0; r < R; r++) {
                const int64_t at = (row + r) * groups + g;
                const __m256 value =
                    _mm256_cvtepi32_ps(_mm256_sub_epi32(acc[r][half], _mm256_set1_epi32(x.offsets[at])));
                totals[r][half] =
                    _mm256_fmadd_ps(value, _mm256_mul_ps(scale, _mm256_set1_ps(x.scales[at])), totals[r][half]);
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int half = 0; half < 2; half++) _mm256_storeu_ps(out[r] + 8 * half, totals[r][half]);
}

inline void multiply_int4(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x,
                            float* const* out) {
    static thread_local Int16Groups integers;
    const int64_t groups = w.groups();
    integers.set(x, M, groups);
    for (int64_t n = first; n < last; n += PANEL) {
        const int64_t block = n / PANEL * groups;
        const uint8_t *codes = w.codes + block * BLOCK_BYTES, *scales = w.scales + block * PANEL * 2;
        for (int m = 0, count; m < M; m += count) {
            float results[INT4_ROW_TILE][PANEL];
            count = M - m >= INT4_ROW_TILE ? INT4_ROW_TILE : M - m >= 2 ? 2 : 1;
            if (count == INT4_ROW_TILE) int4_microkernel<INT4_ROW_TILE>(codes, scales, groups, integers, m, results);
            else if (count == 2) int4_microkernel<2>(codes, scales, groups, integers, m, results);
            else int4_microkernel<1>(codes, scales, groups, integers, m, results);
            for (int r = 0; r < count; r++)
                std::copy_n(results[r], std::min(PANEL, last - n), out[m + r] + n - first);
        }
    }
}

}  // namespace vl2
