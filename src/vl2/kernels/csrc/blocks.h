// Sixteen rows of a weight at once: int4 made bfloat16, so that many rows of activations are multiplied by it at the speed
// of bfloat16. A few are multiplied by the codes themselves, see products_avx512.h.
#pragma once
#include "products.h"
#include "transpose.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)

namespace vl2 {

// What a code of four bits stands for, as bfloat16. The index is the low five bits of a word: the fifth belongs to the next
// code, so the table is there twice.
alignas(64) inline const bf16 four_bit_values[32] = {
    0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0,
    0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0,
    0x40c0, 0x40e0};

// Two vectors as bfloat16, an element of the first, one of the second, and so on.
inline __m512i in_pairs(__m512 first, __m512 second) {
    alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(order), (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

// A panel of sixteen rows, of `groups` groups of inputs, as rows of bfloat16: code * scale, rounded once.
inline void unpack_panel(const uint8_t* codes, const uint16_t* scales, int64_t groups, bf16* out) {
    const __m512i table = _mm512_load_si512(four_bit_values);
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    for (int64_t g = 0; g < groups; g++) {
        const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(scales + g * PANEL)));
        __m512i pairs[16];  // of inputs, of each row: one after the other in the codes
        for (int v = 0; v < 4; v++) {
            const __m512i words = _mm512_loadu_si512(codes + g * BLOCK_BYTES + v * 64);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                const __m512i two = _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4 * j), table);
                const __m512 even = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(two, 16)), scale);
                const __m512 odd = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_and_si512(two, upper)), scale);
                pairs[4 * v + j] = in_pairs(even, odd);
            }
        }
        transpose(pairs);
        for (int64_t row = 0; row < PANEL; row++) _mm512_storeu_si512(out + (row * groups + g) * GROUP, pairs[row]);
    }
}

}  // namespace vl2
#endif
