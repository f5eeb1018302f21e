// `multiply` with AVX2 and FMA for bfloat16 weights, for the many processors that have no AVX-512.
//
// In and out as matmul.h says, which alone includes this; int8 and int4 are in matmul_quantized_avx2.h, which it
// includes. Weights lie row by row and are widened to floats in registers; lanes are inputs. A bfloat16 is the upper
// half of a float, so of two neighbors one is widened by a shift and the other by clearing the lower half; even and odd
// inputs of the activations lie apart for that.
#pragma once
#include <immintrin.h>

#include <algorithm>

#include "memory.h"

namespace vl2 {

// How far ahead weights are prefetched.
constexpr int64_t PREFETCH_BYTES = 10240;
constexpr int ROW_TILE = 3;  // rows of inputs at a time: four sums each, which 16 registers just hold

inline __m256i load_words(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

// The even and the odd ones of sixteen bfloat16 numbers, as floats.
inline __m256 even_floats(__m256i halves) { return _mm256_castsi256_ps(_mm256_slli_epi32(halves, 16)); }
inline __m256 odd_floats(__m256i halves) {
    return _mm256_castsi256_ps(_mm256_and_si256(halves, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
}

// Rows of activations as floats, one behind another; of each sixteen first the even ones, then the odd ones.
inline const float* to_floats(const bf16* const* x, int M, int64_t width) {
    static thread_local AlignedVector<float> wide;
    wide.resize(std::max<size_t>(wide.size(), M * width));
    for (int m = 0; m < M; m++) {
        for (int64_t k = 0; k < width; k += 16) {
            const __m256i halves = load_words(x[m] + k);
            _mm256_storeu_ps(&wide[m * width + k], even_floats(halves));
            _mm256_storeu_ps(&wide[m * width + k + 8], odd_floats(halves));
        }
    }
    return wide.data();
}

// One row of weights with R rows of activations, which are filled up with zeros to `width`.
template <int R>
inline void bf16_microkernel(const bf16* row, int64_t inputs, const float* x, int64_t width, float* totals) {
    Prefetch prefetch{reinterpret_cast<const uint8_t*>(row) + PREFETCH_BYTES, R == 1 && FORESEES_STREAMS ? 0 : 1};
    __m256 acc[R][4];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < 4; j++) acc[r][j] = _mm256_setzero_ps();
    for_each_group(row, inputs, [&](const bf16* from, int64_t k) {
        prefetch.step();  // as long as a group
        for (int j = 0; j < 4; j += 2) {
            const __m256i halves = load_words(from + 8 * j);
            const __m256 even = even_floats(halves), odd = odd_floats(halves);
            for (int r = 0; r < R; r++) {
                const float* inputs = x + r * width + k + 8 * j;
                acc[r][j] = _mm256_fmadd_ps(even, _mm256_loadu_ps(inputs), acc[r][j]);
                acc[r][j + 1] = _mm256_fmadd_ps(odd, _mm256_loadu_ps(inputs + 8), acc[r][j + 1]);
            }
        }
    });
    for (int r = 0; r < R; r++)
        totals[r] = sum(_mm256_add_ps(_mm256_add_ps(acc[r][0], acc[r][1]), _mm256_add_ps(acc[r][2], acc[r][3])));
}

inline void multiply_bf16(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x,
                          float* const* out) {
    const int64_t width = padded(w.inputs);
    const float* wide = to_floats(x, M, width);
    for (int64_t n = first; n < last; n++) {
        const bf16* row = reinterpret_cast<const bf16*>(w.codes) + n * w.inputs;
        for (int m = 0; m < M; m += ROW_TILE) {
            float totals[ROW_TILE];
            const int count = std::min(ROW_TILE, M - m);
            const float* inputs = wide + m * width;
            if (count == 3) bf16_microkernel<3>(row, w.inputs, inputs, width, totals);
            else if (count == 2) bf16_microkernel<2>(row, w.inputs, inputs, width, totals);
            else bf16_microkernel<1>(row, w.inputs, inputs, width, totals);
            for (int r = 0; r < count; r++) out[m + r][n - first] = totals[r];
        }
    }
}

}  // namespace vl2

#include "matmul_quantized_avx2.h"
