// Products with AVX-512: bfloat16 dot products, two inputs of 16 lanes an instruction.
//
// bfloat16 lies row by row: lanes are inputs, and are added up at the end of a row. So does int8, which is multiplied in whole
// numbers, see products_int8_avx512.h. int4 lies in panels: lanes are outputs, inputs are broadcast, and a table turns four
// bits into bfloat16; the scale of a group is applied to the sum of its 32 products.
//
// What is read once from memory must come as one stream. Four rows of weights at a time, which spare loads of the
// inputs, halve the bandwidth of one core; so one or two rows of inputs go over one row of weights after another, and
// more of them over four rows which have been asked for ahead of time, evenly between the products.
#pragma once
#include <algorithm>
#include <vector>

namespace vl2 {

constexpr int ROWS = 4;        // rows of weights whose lanes are added up together
constexpr int TILE = 4;        // rows of inputs at a time
constexpr int PANEL_TILE = 8;  // the same for panels
constexpr int64_t AHEAD = 10240;
// Lines asked for with every 64 bytes of bfloat16, where rows of weights are read one after another. Processors with AMX
// read a third faster so; those of AMD foresee such a stream by themselves.
#if defined(__AMX_BF16__)
constexpr int STREAM_LINES = 1;
#else
constexpr int STREAM_LINES = 0;
#endif

// Asks for memory before it is needed, into the second cache: `lines` of 64 bytes a step.
struct Ahead {
    const uint8_t* next;
    int lines;

    void step() {
        for (int i = 0; i < lines; i++) line();
    }
    void line() {
        _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T1);
        next += 64;
    }
};

// The sums of four vectors. Each is added up in the same order, wherever it stands among the four.
inline __m128 sums(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
                                     _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// M rows of inputs with R rows of weights, into column `q` and those behind it. One sum a pair, in the order of inputs.
template <int M, int R>
inline void dots(const uint8_t* weight, int64_t stride, int64_t inputs, const bf16* const* x, __m512 (*out)[ROWS], int q,
                 Ahead& ahead) {
    __m512 acc[M][R];
    for (int m = 0; m < M; m++)
        for (int r = 0; r < R; r++) acc[m][r] = _mm512_setzero_ps();
    int64_t k = 0;
    for (; k + 32 <= inputs; k += 32) {
        __m512bh w[R];
        for (int r = 0; r < R; r++) w[r] = (__m512bh)_mm512_loadu_si512(weight + r * stride + 2 * k);
        ahead.step();
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
inline void dots(int M, const uint8_t* weight, int64_t stride, int64_t inputs, const bf16* const* x,
                 __m512 (*out)[ROWS], int q, Ahead& ahead) {
    switch (M) {
        case 1: return dots<1, R>(weight, stride, inputs, x, out, q, ahead);
        case 2: return dots<2, R>(weight, stride, inputs, x, out, q, ahead);
        case 3: return dots<3, R>(weight, stride, inputs, x, out, q, ahead);
        default: return dots<4, R>(weight, stride, inputs, x, out, q, ahead);
    }
}

inline void multiply_rows(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x, float* const* out) {
    const int64_t stride = 2 * w.inputs;
    const bool is_stream = M <= 2;
    const int num_tiles = (M + TILE - 1) / TILE;
    for (int64_t n = first; n < last; n += ROWS) {
        const int rows = static_cast<int>(std::min<int64_t>(ROWS, w.outputs - n));
        const uint8_t* weight = w.codes + n * stride;
        // Each tile that passes over four rows asks for its share of four that come later.
        Ahead ahead{weight + (num_tiles > 1 ? 2 * AHEAD : AHEAD), is_stream ? STREAM_LINES : (TILE + num_tiles - 1) / num_tiles};
        for (int m = 0; m < M; m += TILE) {
            const int count = std::min(TILE, M - m);
            __m512 lanes[TILE][ROWS];
            if (rows == ROWS && !is_stream) dots<ROWS>(count, weight, stride, w.inputs, x + m, lanes, 0, ahead);
            else
                for (int r = 0; r < ROWS; r++)
                    dots<1>(count, weight + std::min(r, rows - 1) * stride, stride, w.inputs, x + m, lanes, r, ahead);
            for (int i = 0; i < count; i++) {
                float four[ROWS];
                _mm_storeu_ps(four, sums(lanes[i][0], lanes[i][1], lanes[i][2], lanes[i][3]));
                std::copy_n(four, std::min<int64_t>(rows, last - n), out[m + i] + n - first);
            }
        }
    }
}

// What a code of four bits stands for, as bfloat16. The index is the low five bits of a word: the fifth belongs to the next
// code, so the table is there twice.
alignas(64) inline const bf16 four_bit_values[32] = {
    0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0,
    0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0,
    0x40c0, 0x40e0};

template <int M>
inline void panel(const uint8_t* codes, const uint8_t* scales, int64_t groups, const bf16* const* x, __m512* out,
                  Ahead& ahead) {
    const __m512i table = _mm512_load_si512(four_bit_values);
    for (int m = 0; m < M; m++) out[m] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
        const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(scales + g * PANEL * 2)));
        __m512 acc[M][2];
        for (int m = 0; m < M; m++) acc[m][0] = acc[m][1] = _mm512_setzero_ps();
        ahead.step();
        for (int v = 0; v < 4; v++) {
            const __m512i words = _mm512_loadu_si512(codes + g * BLOCK_BYTES + v * 64);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                const __m512bh w = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4 * j), table);
                for (int m = 0; m < M; m++) {
                    int32_t pair;
                    std::memcpy(&pair, x[m] + g * GROUP + v * 8 + j * 2, 4);
                    acc[m][j & 1] = _mm512_dpbf16_ps(acc[m][j & 1], w, (__m512bh)_mm512_set1_epi32(pair));
                }
            }
        }
        for (int m = 0; m < M; m++) out[m] = _mm512_fmadd_ps(_mm512_add_ps(acc[m][0], acc[m][1]), scale, out[m]);
    }
}

inline void multiply_panels(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x,
                            float* const* out) {
    const int64_t groups = w.groups();
    const int num_tiles = (M + PANEL_TILE - 1) / PANEL_TILE;
    for (int64_t n = first; n < last; n += PANEL) {
        const uint8_t* codes = w.codes + n / PANEL * groups * BLOCK_BYTES;
        const uint8_t* scales = w.scales + n / PANEL * groups * PANEL * 2;
        const __mmask16 kept = last - n < PANEL ? static_cast<__mmask16>((1u << (last - n)) - 1) : 0xffff;
        Ahead ahead{codes + AHEAD, (4 + num_tiles - 1) / num_tiles};
        for (int m = 0; m < M; m += PANEL_TILE) {
            const int count = M - m < PANEL_TILE ? M - m : PANEL_TILE;
            __m512 results[PANEL_TILE];
            switch (count) {
                case 1: panel<1>(codes, scales, groups, x + m, results, ahead); break;
                case 2: panel<2>(codes, scales, groups, x + m, results, ahead); break;
                case 3: panel<3>(codes, scales, groups, x + m, results, ahead); break;
                case 4: panel<4>(codes, scales, groups, x + m, results, ahead); break;
                case 5: panel<5>(codes, scales, groups, x + m, results, ahead); break;
                case 6: panel<6>(codes, scales, groups, x + m, results, ahead); break;
                case 7: panel<7>(codes, scales, groups, x + m, results, ahead); break;
                default: panel<8>(codes, scales, groups, x + m, results, ahead); break;
            }
            for (int i = 0; i < count; i++) _mm512_mask_storeu_ps(out[m + i] + n - first, kept, results[i]);
        }
    }
}

}  // namespace vl2

#include "products_int8_avx512.h"

namespace vl2 {

// Outputs first to last of M rows; `first` is a multiple of 16, and so is `last` unless it is the last of all.
inline void multiply(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x, float* const* out) {
    if (w.kind == INT4) multiply_panels(w, first, last, M, x, out);
    else if (w.kind == INT8) multiply_int8(w, first, last, M, x, out);
    else multiply_rows(w, first, last, M, x, out);
}

}  // namespace vl2
