// int4 weights dequantized to bfloat16, so that many rows of activations are multiplied by them at the speed of
// bfloat16.
//
// In: panels of sixteen rows of codes, and their scales. Out: sixteen rows of bfloat16. Included by int4.h alone; used
// by prefill_moe_avx512.h panel by panel and by int4.h for whole weights. A few rows are multiplied by the
// codes themselves, see matmul_quantized_avx512.h.
#pragma once
#include "matmul.h"

namespace vl2 {

// A panel of sixteen rows, of `groups` groups of inputs, as rows of bfloat16: code * scale, rounded once. Of each row
// and group the sixteen numbers that its codes may stand for are made, and looked up.
inline void dequantize_panel(const uint8_t* codes, const uint16_t* scales, int64_t groups, bf16* out) {
    alignas(64) static const float values[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    // Of each input: its word among the eight of its row, and where in that word its code begins.
    alignas(64) static const uint16_t words[32] = {0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3,
                                                   4, 5, 4, 5, 4, 5, 4, 5, 6, 7, 6, 7, 6, 7, 6, 7};
    alignas(64) static const uint16_t begins[32] = {0, 0, 4, 4, 8, 8, 12, 12, 0, 0, 4, 4, 8, 8, 12, 12,
                                                    0, 0, 4, 4, 8, 8, 12, 12, 0, 0, 4, 4, 8, 8, 12, 12};
    const __m512 all = _mm512_load_ps(values);
    const __m512i word = _mm512_load_si512(words), begin = _mm512_load_si512(begins);
    for (int64_t g = 0; g < groups; g++) {
        alignas(64) float scale[PANEL];
        _mm512_store_ps(scale, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(scales + g * PANEL))));
        // Lanes are rows; then four rows lie behind one another in each vector, the eight words of each together.
        __m512i lanes[4];
        for (int v = 0; v < 4; v++) lanes[v] = _mm512_loadu_si512(codes + g * BLOCK_BYTES + v * 64);
        const __m512i low[2] = {_mm512_unpacklo_epi32(lanes[0], lanes[1]), _mm512_unpacklo_epi32(lanes[2], lanes[3])};
        const __m512i high[2] = {_mm512_unpackhi_epi32(lanes[0], lanes[1]), _mm512_unpackhi_epi32(lanes[2], lanes[3])};
        const __m512i rows[4] = {_mm512_unpacklo_epi64(low[0], low[1]), _mm512_unpackhi_epi64(low[0], low[1]),
                                 _mm512_unpacklo_epi64(high[0], high[1]), _mm512_unpackhi_epi64(high[0], high[1])};
#pragma GCC unroll 4
        for (int quarter = 0; quarter < 4; quarter++) {
            const __m512i place = _mm512_add_epi16(word, _mm512_set1_epi16(static_cast<short>(8 * quarter)));
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                const int row = 4 * quarter + i;
                const __m256i table = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(all, _mm512_set1_ps(scale[row])));
                // A look-up takes the lowest five bits: the table is there twice, for the fifth is of the next code.
                const __m512i code = _mm512_srlv_epi16(_mm512_permutexvar_epi16(place, rows[i]), begin);
                _mm512_storeu_si512(out + (row * groups + g) * GROUP,
                                    _mm512_permutexvar_epi16(code, _mm512_broadcast_i64x4(table)));
            }
        }
    }
}

}  // namespace vl2
