// `multiply` with AVX2 for int8 and int4 weights: integer products of activations that become integers too.
//
// In and out as matmul.h says; included by matmul_avx2.h. Activations become 16-bit integers as int16.h says. int8 lies
// row by row, lanes are inputs: sixteen codes are widened to 16 bits, and `vpmaddwd` multiplies and adds pairs. int4
// lies in panels, lanes are outputs: `vpmaddubsw` multiplies 32 codes with the high or the low bytes of activations,
// and adds pairs in 16 bits, which a group of 32 inputs cannot overflow. Sums of integers are exact, so a row's result
// depends on that row alone, and has the bits of the AVX-512 kernels.
#pragma once
#include <algorithm>
#include <vector>

#include "int16.h"
#include "int8.h"

namespace vl2 {

// Eight bfloat16 numbers as integers.
inline __m256i to_integers(const bf16* from, float factor) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m256 floats = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    return _mm256_cvtps_epi32(_mm256_mul_ps(floats, _mm256_set1_ps(factor)));
}

// The sum of 32-bit lanes that does not need more than 32 bits.
inline int32_t int_sum(__m256i lanes) {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    half = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 1)));
}

// The sum of 32-bit lanes in 64 bits.
inline int64_t long_sum(__m256i lanes) {
    const __m256i low = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(lanes));
    const __m256i four = _mm256_add_epi64(low, _mm256_cvtepi32_epi64(_mm256_extracti128_si256(lanes, 1)));
    const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    return _mm_cvtsi128_si64(two) + _mm_extract_epi64(two, 1);
}

// Rows of activations as integers, each by its own largest.
class Int16Rows {
   public:
    // Rows of bfloat16 with zeros up to `width`, a multiple of 32.
    void quantize(const bf16* const* x, int rows, int64_t width) {
        values_.resize(std::max<size_t>(values_.size(), rows * width));
        scales.resize(rows);
        for (int row = 0; row < rows; row++) {
            const PowerScale scale_of = power_scale(bit_cast<uint32_t>(largest_magnitude(x[row], width)) >> 16);
            scales[row] = scale_of.scale;
            for (int64_t k = 0; k < width; k += 16) {
                const __m256i packed = _mm256_packs_epi32(to_integers(x[row] + k, scale_of.factor),
                                                          to_integers(x[row] + k + 8, scale_of.factor));
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(&values_[row * width + k]),
                                    _mm256_permute4x64_epi64(packed, 0xd8));
            }
        }
    }
    const int16_t* data() const { return values_.data(); }

    std::vector<float> scales;  // of each row

   private:
    AlignedVector<int16_t> values_;
};

// A lane adds two products of at most 128 * 32512 for every sixteen inputs: so many inputs stay within 32 bits.
constexpr int64_t INPUTS_IN_32_BITS = 4096;
constexpr int INT8_ROW_TILE = 4;  // rows of inputs at a time: two sums each, of 16 registers

// One row of weights with R rows of activations.
template <int R>
inline void int8_microkernel(const int8_t* row, int64_t inputs, const int16_t* x, int64_t width, int64_t* totals) {
    Prefetch prefetch{reinterpret_cast<const uint8_t*>(row) + PREFETCH_BYTES, R == 1 && FORESEES_STREAMS ? 0 : 1};
    for (int r = 0; r < R; r++) totals[r] = 0;
    for (int64_t begin = 0; begin < inputs; begin += INPUTS_IN_32_BITS) {
        const int64_t end = std::min(inputs, begin + INPUTS_IN_32_BITS);
        __m256i acc[R][2];
        for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
        const auto step = [&](const int8_t* codes, int64_t k) {  // a group
            for (int j = 0; j < 2; j++) {
                const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes) + j);
                const __m256i weights = _mm256_cvtepi8_epi16(sixteen);
                for (int r = 0; r < R; r++)
                    acc[r][j] = _mm256_add_epi32(
                        acc[r][j], _mm256_madd_epi16(weights, load_words(x + r * width + k + 16 * j)));
            }
        };
        int64_t k = begin;
        for (; k + 2 * GROUP <= end; k += 2 * GROUP) {
            prefetch.step();
            step(row + k, k);
            step(row + k + GROUP, k + GROUP);
        }
        for_each_group(row + k, end - k, [&](const int8_t* codes, int64_t at) { step(codes, k + at); });
        for (int r = 0; r < R; r++) totals[r] += long_sum(_mm256_add_epi32(acc[r][0], acc[r][1]));
    }
}

inline void multiply_int8(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x,
                          float* const* out) {
    static thread_local Int16Rows rows;
    const int64_t width = padded(w.inputs);
    const float* scales = reinterpret_cast<const float*>(w.scales);
    rows.quantize(x, M, width);
    for (int64_t n = first; n < last; n++) {
        const int8_t* row = reinterpret_cast<const int8_t*>(w.codes) + n * w.inputs;
        for (int m = 0; m < M; m += INT8_ROW_TILE) {
            int64_t totals[INT8_ROW_TILE];
            const int count = std::min(INT8_ROW_TILE, M - m);
            with_constant<INT8_ROW_TILE>(count, [&](auto R) {
                int8_microkernel<R>(row, w.inputs, rows.data() + m * width, width, totals);
            });
            for (int r = 0; r < count; r++)
                out[m + r][n - first] = static_cast<float>(totals[r]) * scales[n] * rows.scales[m + r];
        }
    }
}

// Rows of activations as integers, each group of 32 by its own largest: one large activation costs its group alone.
class Int16Groups {
   public:
    std::vector<float> scales;     // [rows, groups]
    std::vector<int32_t> offsets;  // [rows, groups], minus eight times the sum: codes are held 8 above the weights

    void quantize(const bf16* const* x, int rows, int64_t groups) {
        const size_t count = rows * groups;
        if (scales.size() < count) {
            scales.resize(count);
            offsets.resize(count);
            groups_.resize(count);
        }
        for (int row = 0; row < rows; row++)
            for (int64_t g = 0; g < groups; g++) quantize_group(x[row] + g * GROUP, row * groups + g);
    }
    const Int16Group& operator[](int64_t at) const { return groups_[at]; }

   private:
    AlignedVector<Int16Group> groups_;

    void quantize_group(const bf16* from, int64_t at) {
        const PowerScale scale_of = power_scale(bit_cast<uint32_t>(largest_magnitude(from, GROUP)) >> 16);
        __m256i low[4], high[4], sum = _mm256_setzero_si256();
        for (int i = 0; i < 4; i++) {
            const __m256i integers = to_integers(from + 8 * i, scale_of.factor);
            sum = _mm256_add_epi32(sum, integers);
            // Low bytes have a sign too, hence the 128.
            high[i] = _mm256_srai_epi32(_mm256_add_epi32(integers, _mm256_set1_epi32(128)), 8);
            low[i] = _mm256_sub_epi32(integers, _mm256_slli_epi32(high[i], 8));
        }
        store_bytes(high, groups_[at].high);
        store_bytes(low, groups_[at].low);
        offsets[at] = -8 * int_sum(sum);
        scales[at] = scale_of.scale;
    }

    // Packed, the lower half holds inputs 0 to 3 of each eight, and the upper half 4 to 7.
    static void store_bytes(const __m256i* integers, int8_t* to) {
        const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(integers[0], integers[1]),
                                                  _mm256_packs_epi32(integers[2], integers[3]));
        const __m128i lower = _mm256_castsi256_si128(packed), upper = _mm256_extracti128_si256(packed, 1);
        _mm_store_si128(reinterpret_cast<__m128i*>(to), _mm_unpacklo_epi8(lower, upper));
        _mm_store_si128(reinterpret_cast<__m128i*>(to) + 1, _mm_unpackhi_epi8(lower, upper));
    }
};

inline __m256i splat_four(const int8_t* bytes) {
    int32_t four;
    std::memcpy(&four, bytes, sizeof four);
    return _mm256_set1_epi32(four);
}

// Eight of the sixteen outputs of a panel, or all (H = 1, 2), with R rows of activations.
template <int R, int H>
inline void int4_microkernel(const uint8_t* codes, const uint8_t* scales, int64_t groups, const Int16Groups& x,
                             int64_t row, float* const* out, Prefetch& prefetch) {
    const __m256i lowest = _mm256_set1_epi8(15);
    __m256 totals[R][H];
    for (int r = 0; r < R; r++)
        for (int h = 0; h < H; h++) totals[r][h] = _mm256_setzero_ps();
    for (int64_t g = 0; g < groups; g++, codes += BLOCK_BYTES, scales += 2 * PANEL) {
        // Sums in 16 bits: eight of two products of at most 15 * 128 are less than 2^15.
        __m256i high[R][H], low[R][H];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            if (v < prefetch.lines) prefetch.line();
#pragma GCC unroll 2
            for (int odd = 0; odd < 2; odd++) {
                __m256i four[H];
                for (int h = 0; h < H; h++) {
                    const __m256i words = load_words(codes + 64 * v + 32 * h);
                    four[h] = _mm256_and_si256(odd ? _mm256_srli_epi16(words, 4) : words, lowest);
                }
                for (int r = 0; r < R; r++) {
                    const Int16Group& from = x[(row + r) * groups + g];
                    const __m256i upper = splat_four(from.high + 8 * v + 4 * odd);
                    const __m256i lower = splat_four(from.low + 8 * v + 4 * odd);
                    for (int h = 0; h < H; h++) {
                        const __m256i above = _mm256_maddubs_epi16(four[h], upper);
                        const __m256i below = _mm256_maddubs_epi16(four[h], lower);
                        high[r][h] = v + odd ? _mm256_add_epi16(high[r][h], above) : above;
                        low[r][h] = v + odd ? _mm256_add_epi16(low[r][h], below) : below;
                    }
                }
            }
        }
        for (int h = 0; h < H; h++) {
            const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales) + h));
            for (int r = 0; r < R; r++) {
                const int64_t at = (row + r) * groups + g;
                const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(high[r][h], _mm256_set1_epi16(256)),
                                                     _mm256_madd_epi16(low[r][h], _mm256_set1_epi16(1)));
                const __m256 value = _mm256_cvtepi32_ps(_mm256_add_epi32(sum, _mm256_set1_epi32(x.offsets[at])));
                totals[r][h] = _mm256_fmadd_ps(value, _mm256_mul_ps(scale, _mm256_set1_ps(x.scales[at])), totals[r][h]);
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int h = 0; h < H; h++) _mm256_storeu_ps(out[r] + 8 * h, totals[r][h]);
}

constexpr int INT4_ROW_TILE = 4;  // rows of inputs at a time, with eight outputs: eight sums of 16 registers

inline void multiply_int4(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x,
                          float* const* out) {
    static thread_local Int16Groups rows;
    const int64_t groups = w.groups();
    rows.quantize(x, M, groups);
    for (int64_t n = first; n < last; n += PANEL) {
        const int64_t block = n / PANEL * groups;
        const uint8_t *codes = w.codes + block * BLOCK_BYTES, *scales = w.scales + block * PANEL * 2;
        Prefetch prefetch{codes + PREFETCH_BYTES, M == 1 && FORESEES_STREAMS ? 0 : 4};
        for (int m = 0, count; m < M; m += count) {
            float results[INT4_ROW_TILE][PANEL];
            float *to[INT4_ROW_TILE], *rest[INT4_ROW_TILE];
            for (int r = 0; r < INT4_ROW_TILE; r++) {
                to[r] = results[r];
                rest[r] = results[r] + PANEL / 2;
            }
            count = M - m >= INT4_ROW_TILE ? INT4_ROW_TILE : M - m >= 2 ? 2 : 1;
            if (count == INT4_ROW_TILE) {
                int4_microkernel<INT4_ROW_TILE, 1>(codes, scales, groups, rows, m, to, prefetch);
                prefetch.lines = 0;
                int4_microkernel<INT4_ROW_TILE, 1>(codes + 32, scales + 16, groups, rows, m, rest, prefetch);
            } else if (count == 2) int4_microkernel<2, 2>(codes, scales, groups, rows, m, to, prefetch);
            else int4_microkernel<1, 2>(codes, scales, groups, rows, m, to, prefetch);
            prefetch.lines = 0;
            for (int r = 0; r < count; r++)
                std::copy_n(results[r], std::min(PANEL, last - n), out[m + r] + n - first);
        }
    }
}

}  // namespace vl2
