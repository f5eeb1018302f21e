// `multiply` with AVX-512 for bfloat16 weights: dot products of two inputs in each of 16 lanes an instruction.
//
// In and out as matmul.h says, which alone includes this; int8 and int4 are in matmul_quantized_avx512.h, which it
// includes. bfloat16 lies row by row: lanes are inputs, and are added up at the end of a row.
//
// What is read once from memory must come as one stream. Four rows of weights at a time, which spare loads of the
// inputs, halve the bandwidth of one core; so one or two rows of inputs go over one row of weights after another, and
// more of them over four rows which have been prefetched, evenly between the products.
#pragma once
#include <algorithm>

namespace vl2 {

constexpr int WEIGHT_ROWS = 4;  // rows of weights whose lanes are added up together: `lane_sums` takes four
constexpr int ROW_TILE = 4;     // rows of inputs at a time: with four of weights, 16 of 32 registers are accumulators
// How far ahead: with 5 and with 20 KB a token takes 3 to 5 % longer.
constexpr int64_t PREFETCH_BYTES = 10240;
// Lines prefetched with every 64 bytes of bfloat16, where rows of weights are read one after another. Intel's processors
// read a third faster so.
inline const int STREAM_LINES = FORESEES_STREAMS ? 0 : 1;

// The sums of four vectors. Each is added up in the same order, wherever it stands among the four.
inline __m128 lane_sums(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
                                     _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// M rows of inputs with R rows of weights, into column `q` and those behind it. One sum a pair, in the order of inputs.
template <int M, int R>
inline void bf16_microkernel(const uint8_t* weight, int64_t stride, int64_t inputs, const bf16* const* x,
                             __m512 (*out)[WEIGHT_ROWS], int q, Prefetch& prefetch) {
    __m512 acc[M][R];
    for (int m = 0; m < M; m++)
        for (int r = 0; r < R; r++) acc[m][r] = _mm512_setzero_ps();
    int64_t k = 0;
    for (; k + 32 <= inputs; k += 32) {
        __m512bh w[R];
        for (int r = 0; r < R; r++) w[r] = (__m512bh)_mm512_loadu_si512(weight + r * stride + 2 * k);
        prefetch.step();
        for (int m = 0; m < M; m++) {
            const __m512bh input = (__m512bh)_mm512_loadu_si512(x[m] + k);
            for (int r = 0; r < R; r++) acc[m][r] = _mm512_dpbf16_ps(acc[m][r], input, w[r]);
        }
    }
    if (k < inputs) {
        const __mmask32 kept = (1u << (inputs - k)) - 1;
        for (int r = 0; r < R; r++) {
            const __m512bh w = (__m512bh)_mm512_maskz_loadu_epi16(kept, weight + r * stride + 2 * k);
            for (int m = 0; m < M; m++)
                acc[m][r] = _mm512_dpbf16_ps(acc[m][r], (__m512bh)_mm512_loadu_si512(x[m] + k), w);
        }
    }
    for (int m = 0; m < M; m++)
        for (int r = 0; r < R; r++) out[m][q + r] = acc[m][r];
}

template <int R>
inline void bf16_dots(int M, const uint8_t* weight, int64_t stride, int64_t inputs, const bf16* const* x,
                      __m512 (*out)[WEIGHT_ROWS], int q, Prefetch& prefetch) {
    switch (M) {
        case 1: return bf16_microkernel<1, R>(weight, stride, inputs, x, out, q, prefetch);
        case 2: return bf16_microkernel<2, R>(weight, stride, inputs, x, out, q, prefetch);
        case 3: return bf16_microkernel<3, R>(weight, stride, inputs, x, out, q, prefetch);
        default: return bf16_microkernel<4, R>(weight, stride, inputs, x, out, q, prefetch);
    }
}

inline void multiply_bf16(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x,
                          float* const* out) {
    const int64_t stride = 2 * w.inputs;
    const bool is_stream = M <= 2;
    const int num_tiles = (M + ROW_TILE - 1) / ROW_TILE;
    for (int64_t n = first; n < last; n += WEIGHT_ROWS) {
        const int rows = static_cast<int>(std::min<int64_t>(WEIGHT_ROWS, w.outputs - n));
        const uint8_t* weight = w.codes + n * stride;
        // Each tile of inputs that passes over four rows of weights prefetches its share of four that come later.
        Prefetch prefetch{weight + (num_tiles > 1 ? 2 * PREFETCH_BYTES : PREFETCH_BYTES),
                          is_stream ? STREAM_LINES : (ROW_TILE + num_tiles - 1) / num_tiles};
        for (int m = 0; m < M; m += ROW_TILE) {
            const int count = std::min(ROW_TILE, M - m);
            __m512 lanes[ROW_TILE][WEIGHT_ROWS];
            if (rows == WEIGHT_ROWS && !is_stream)
                bf16_dots<WEIGHT_ROWS>(count, weight, stride, w.inputs, x + m, lanes, 0, prefetch);
            else
                for (int r = 0; r < WEIGHT_ROWS; r++)
                    bf16_dots<1>(count, weight + std::min(r, rows - 1) * stride, stride, w.inputs, x + m, lanes, r,
                                 prefetch);
            for (int i = 0; i < count; i++) {
                float four[WEIGHT_ROWS];
                _mm_storeu_ps(four, lane_sums(lanes[i][0], lanes[i][1], lanes[i][2], lanes[i][3]));
                std::copy_n(four, std::min<int64_t>(rows, last - n), out[m + i] + n - first);
            }
        }
    }
}

}  // namespace vl2

#include "matmul_quantized_avx512.h"
