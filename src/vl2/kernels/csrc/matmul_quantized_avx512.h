// `multiply` with AVX-512 VNNI for int8 and int4 weights: integer products of activations that become integers too.
//
// In and out as matmul.h says; included by matmul_avx512.h. Activations become 16-bit integers as int16.h says. Each is
// held as two bytes, 256 * high + low, for VNNI multiplies bytes: signed ones with unsigned ones, so codes are shifted
// to be unsigned, and their sums are corrected by the sum of the activations. Sums of integers have the same bits in
// every order, so a row's result depends on that row alone, and with int8 more rows may take the tile registers
// (matmul_int8_amx.h) with the same bits.
#pragma once
#include <algorithm>
#include <vector>

#include "int16.h"
#include "int8.h"
#include "memory.h"

namespace vl2 {

// The high bytes of sixteen integers; the low ones are the lowest bytes. Low bytes have a sign too, hence the 128.
inline __m512i high_bytes(__m512i integers) {
    return _mm512_srai_epi32(_mm512_add_epi32(integers, _mm512_set1_epi32(128)), 8);
}

constexpr int INT4_ROW_TILE = 4;  // rows of inputs at a time; eight take a sixth longer

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

    // There is an instruction for the smallest of eight: of the inverted ones.
    static uint32_t largest_of(__m512i magnitudes) {
        const __m256i half =
            _mm256_max_epu16(_mm512_castsi512_si256(magnitudes), _mm512_extracti64x4_epi64(magnitudes, 1));
        const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
        const __m128i inverted = _mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1)));
        return 0xffff ^ static_cast<uint16_t>(_mm_cvtsi128_si32(inverted));
    }

    void quantize_group(const bf16* from, int64_t at) {
        const __m512i halves = _mm512_loadu_si512(from);
        const PowerScale scale_of = power_scale(largest_of(_mm512_and_si512(halves, _mm512_set1_epi16(0x7fff))));
        const __m512 factor = _mm512_set1_ps(scale_of.factor);
        const auto integers = [&](__m256i some) {
            const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(some), 16);
            return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(wide), factor));
        };
        const __m512i first = integers(_mm512_castsi512_si256(halves)),
                      second = integers(_mm512_extracti64x4_epi64(halves, 1));
        const auto bytes = [](__m512i one, __m512i two) {
            const __m256i order = _mm256_broadcastsi128_si256(
                _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
            return _mm256_shuffle_epi8(_mm256_set_m128i(_mm512_cvtepi32_epi8(two), _mm512_cvtepi32_epi8(one)), order);
        };
        Int16Group& to = groups_[at];
        _mm256_store_si256((__m256i*)to.high, bytes(high_bytes(first), high_bytes(second)));
        _mm256_store_si256((__m256i*)to.low, bytes(first, second));
        offsets[at] = -8 * _mm512_reduce_add_epi32(_mm512_add_epi32(first, second));
        scales[at] = scale_of.scale;
    }
};

// Sixteen outputs of M rows from `row` on. What comes next is prefetched evenly between the products: four lines at
// once cost a sixth of the speed.
template <int M>
inline void int4_microkernel(const uint8_t* codes, const uint8_t* scales, int64_t groups, const Int16Groups& x,
                             int64_t row, __m512* out, Prefetch& prefetch) {
    const __m512i lowest = _mm512_set1_epi8(15);
    for (int m = 0; m < M; m++) out[m] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
        __m512i high[M], low[M];
        for (int m = 0; m < M; m++) {
            high[m] = _mm512_setzero_si512();
            low[m] = _mm512_set1_epi32(x.offsets[(row + m) * groups + g]);
        }
        for (int v = 0; v < 4; v++) {
            if (v < prefetch.lines) prefetch.line();
            const __m512i words = _mm512_loadu_si512(codes + g * BLOCK_BYTES + v * 64);
            for (int odd = 0; odd < 2; odd++) {
                const __m512i four = _mm512_and_si512(odd ? _mm512_srli_epi16(words, 4) : words, lowest);
                for (int m = 0; m < M; m++) {
                    const Int16Group& from = x[(row + m) * groups + g];
                    int32_t upper, lower;
                    std::memcpy(&upper, from.high + 8 * v + 4 * odd, 4);
                    std::memcpy(&lower, from.low + 8 * v + 4 * odd, 4);
                    high[m] = _mm512_dpbusd_epi32(high[m], four, _mm512_set1_epi32(upper));
                    low[m] = _mm512_dpbusd_epi32(low[m], four, _mm512_set1_epi32(lower));
                }
            }
        }
        const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(scales + g * PANEL * 2)));
        for (int m = 0; m < M; m++) {
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high[m], 8), low[m]));
            out[m] =
                _mm512_fmadd_ps(sum, _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[(row + m) * groups + g])), out[m]);
        }
    }
}

// Outputs first to last of M rows.
inline void multiply_int4(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x,
                          float* const* out) {
    static thread_local Int16Groups rows;
    const int64_t groups = w.groups();
    rows.quantize(x, M, groups);
    const int num_tiles = (M + INT4_ROW_TILE - 1) / INT4_ROW_TILE;
    for (int64_t n = first; n < last; n += PANEL) {
        const uint8_t* codes = w.codes + n / PANEL * groups * BLOCK_BYTES;
        const uint8_t* scales = w.scales + n / PANEL * groups * PANEL * 2;
        const __mmask16 kept = last - n < PANEL ? static_cast<__mmask16>((1u << (last - n)) - 1) : 0xffff;
        Prefetch prefetch{codes + PREFETCH_BYTES, M == 1 && FORESEES_STREAMS ? 0 : (4 + num_tiles - 1) / num_tiles};
        for (int m = 0; m < M; m += INT4_ROW_TILE) {
            const int count = std::min(INT4_ROW_TILE, M - m);
            __m512 results[INT4_ROW_TILE];
            // A switch, not with_constant: GCC keeps less in registers across its lambda, and one row takes 5 % longer.
            switch (count) {
                case 1: int4_microkernel<1>(codes, scales, groups, rows, m, results, prefetch); break;
                case 2: int4_microkernel<2>(codes, scales, groups, rows, m, results, prefetch); break;
                case 3: int4_microkernel<3>(codes, scales, groups, rows, m, results, prefetch); break;
                default: int4_microkernel<4>(codes, scales, groups, rows, m, results, prefetch); break;
            }
            for (int i = 0; i < count; i++) _mm512_mask_storeu_ps(out[m + i] + n - first, kept, results[i]);
        }
    }
}

constexpr int64_t BYTES_AT_ONCE = 64;  // of a row: one vector

// Rows of activations as integers, each by its own largest, filled up with zeros to a multiple of 64. All high bytes of
// a row lie before its low ones.
class Int16Rows {
   public:
    // Rows of bfloat16 with zeros up to a multiple of 32 behind their `inputs`.
    void quantize(const bf16* const* x, int rows, int64_t inputs) {
        width_ = round_up(inputs, BYTES_AT_ONCE);
        bytes_.resize(std::max<size_t>(bytes_.size(), 2 * rows * width_));
        scales.resize(rows);
        sums.resize(rows);
        for (int row = 0; row < rows; row++) quantize_row(x[row], row, padded(inputs));
    }

    const int8_t* high(int row) const { return bytes_.data() + 2 * row * width_; }
    const int8_t* low(int row) const { return high(row) + width_; }
    int64_t width() const { return width_; }

    std::vector<float> scales;  // of each row
    std::vector<int64_t> sums;  // of each row's integers

   private:
    int64_t width_ = 0;
    AlignedVector<int8_t> bytes_;

    void quantize_row(const bf16* x, int row, int64_t width) {
        const PowerScale scale_of = power_scale(bit_cast<uint32_t>(largest_magnitude(x, width)) >> 16);
        const __m512 factor = _mm512_set1_ps(scale_of.factor);
        scales[row] = scale_of.scale;

        int8_t *high = bytes_.data() + 2 * row * width_, *low = high + width_;
        __m512i sum = _mm512_setzero_si512();
        for (int64_t k = 0; k < width; k += 16) {
            const __m512 value = (__m512)load(x + k);
            const __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(value, factor));
            _mm_storeu_si128((__m128i*)(high + k), _mm512_cvtepi32_epi8(high_bytes(integers)));
            _mm_storeu_si128((__m128i*)(low + k), _mm512_cvtepi32_epi8(integers));
            sum = _mm512_add_epi32(sum, integers);
        }
        sums[row] = _mm512_reduce_add_epi32(sum);
        std::fill(high + width, high + width_, 0);
        std::fill(low + width, low + width_, 0);
    }
};

// 256 * high + low of eight sums. In 64 bits: long rows need more than 32.
inline __m512i combine_bytes(__m256i high, __m256i low) {
    return _mm512_add_epi64(_mm512_slli_epi64(_mm512_cvtepi32_epi64(high), 8), _mm512_cvtepi32_epi64(low));
}

// The same of sixteen, as floats, each rounded once.
inline __m512 combine_bytes(__m512i high, __m512i low) {
    const __m256 first = _mm512_cvtepi64_ps(combine_bytes(_mm512_castsi512_si256(high), _mm512_castsi512_si256(low)));
    const __m256 second =
        _mm512_cvtepi64_ps(combine_bytes(_mm512_extracti64x4_epi64(high, 1), _mm512_extracti64x4_epi64(low, 1)));
    return _mm512_insertf32x8(_mm512_castps256_ps512(first), second, 1);
}

// The sums of four vectors, in any order: integers are exact.
inline __m128i int_sums(const __m512i* lanes) {
    const auto pairs = [](__m512i a, __m512i b) {
        return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    };
    const __m512i ab = pairs(lanes[0], lanes[1]), cd = pairs(lanes[2], lanes[3]);
    const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// M rows of inputs, which lie as in Int16Rows, with R rows of weights: sums of the high and the low bytes, in column
// `q` and those behind it. The instruction takes one of its sides without sign, so codes are 128 more, for which the
// epilogue corrects the sums. The loops over sums are unrolled early, and there is one loop over the inputs: else GCC
// keeps the sums in memory, and with more than four rows it takes 1.7 times as long.
template <int M, int R>
inline void int8_microkernel(const uint8_t* weight, int64_t inputs, const int8_t* x, int64_t width,
                             __m512i (*high)[WEIGHT_ROWS], __m512i (*low)[WEIGHT_ROWS], int q, Prefetch& prefetch) {
    __m512i acc[2][M][R];
#pragma GCC unroll 4
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) acc[0][m][r] = acc[1][m][r] = _mm512_setzero_si512();
    const __mmask64 rest = (uint64_t(1) << inputs % BYTES_AT_ONCE) - 1;
    for (int64_t k = 0; k < inputs; k += BYTES_AT_ONCE) {
        const bool is_whole = k + BYTES_AT_ONCE <= inputs;
        __m512i w[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const uint8_t* from = weight + r * inputs + k;
            const __m512i codes = is_whole ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi8(rest, from);
            w[r] = _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
        }
        if constexpr (R > 1) prefetch.step();
        else if (prefetch.lines) prefetch.line();
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) {
            const int8_t* row = x + 2 * m * width + k;
            const __m512i upper = _mm512_loadu_si512(row), lower = _mm512_loadu_si512(row + width);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                acc[0][m][r] = _mm512_dpbusd_epi32(acc[0][m][r], w[r], upper);
                acc[1][m][r] = _mm512_dpbusd_epi32(acc[1][m][r], w[r], lower);
            }
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            high[m][q + r] = acc[0][m][r];
            low[m][q + r] = acc[1][m][r];
        }
}

constexpr int INT8_ROW_TILE = 3;    // rows of inputs at a time: with four of weights, 24 registers of sums
constexpr int MAX_STREAM_ROWS = 4;  // rows of inputs at once over one row of weights after another

// The same for up to four rows of inputs with one of weights, three with four.
template <int R>
inline void int8_dots(int M, const uint8_t* weight, int64_t inputs, const int8_t* x, int64_t width,
                      __m512i (*high)[WEIGHT_ROWS], __m512i (*low)[WEIGHT_ROWS], int q, Prefetch& prefetch) {
    switch (M) {
        case 1: return int8_microkernel<1, R>(weight, inputs, x, width, high, low, q, prefetch);
        case 2: return int8_microkernel<2, R>(weight, inputs, x, width, high, low, q, prefetch);
        case 3: return int8_microkernel<3, R>(weight, inputs, x, width, high, low, q, prefetch);
    }
    if constexpr (R == 1) int8_microkernel<4, R>(weight, inputs, x, width, high, low, q, prefetch);
}

// Outputs first to last of M rows; `start` is the one that `out` begins with.
inline void multiply_int16(const Matrix& w, int64_t start, int64_t first, int64_t last, int M, const Int16Rows& x,
                           float* const* out) {
    const float* scales = reinterpret_cast<const float*>(w.scales);
    const bool is_stream = M <= MAX_STREAM_ROWS;
    const int tile = is_stream ? M : INT8_ROW_TILE, num_tiles = (M + tile - 1) / tile;
    for (int64_t n = first; n < last; n += WEIGHT_ROWS) {
        const int rows = static_cast<int>(std::min<int64_t>(WEIGHT_ROWS, last - n));
        const uint8_t* weight = w.codes + n * w.inputs;
        Prefetch prefetch{weight + PREFETCH_BYTES,
                          M == 1 && FORESEES_STREAMS ? 0 : (WEIGHT_ROWS + num_tiles - 1) / num_tiles};
        for (int m = 0; m < M; m += tile) {
            const int count = std::min(tile, M - m);
            const int8_t* bytes = x.high(m);
            __m512i high[MAX_STREAM_ROWS][WEIGHT_ROWS], low[MAX_STREAM_ROWS][WEIGHT_ROWS];
            if (rows == WEIGHT_ROWS && !is_stream)
                int8_dots<WEIGHT_ROWS>(count, weight, w.inputs, bytes, x.width(), high, low, 0, prefetch);
            else
                for (int r = 0; r < WEIGHT_ROWS; r++) {
                    const uint8_t* row = weight + std::min(r, rows - 1) * w.inputs;
                    int8_dots<1>(count, row, w.inputs, bytes, x.width(), high, low, r, prefetch);
                }
            for (int i = 0; i < count; i++) {
                const __m256i upper = _mm256_castsi128_si256(int_sums(high[i]));
                const __m256i lower = _mm256_castsi128_si256(int_sums(low[i]));
                const __m512i total =
                    _mm512_sub_epi64(combine_bytes(upper, lower), _mm512_set1_epi64(128 * x.sums[m + i]));
                float four[8];
                _mm256_storeu_ps(four, _mm512_cvtepi64_ps(total));
                for (int r = 0; r < rows; r++) out[m + i][n + r - start] = four[r] * scales[n + r] * x.scales[m + i];
            }
        }
    }
}

}  // namespace vl2

#if defined(VL2_AMX)
#include "matmul_int8_amx.h"
#else

namespace vl2 {

inline int64_t multiply_in_tiles(const Matrix&, int64_t first, int64_t, int, const Int16Rows&, float* const*) {
    return first;
}

}  // namespace vl2
#endif

namespace vl2 {

// From five rows on a tile product, which always does sixteen, is faster than vectors.
constexpr int FEWEST_FOR_TILES = 5;

// Outputs first to last of M rows.
inline void multiply_int8(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x,
                          float* const* out) {
    static thread_local Int16Rows rows;
    rows.quantize(x, M, w.inputs);
    const bool in_tiles = HAS_TILES && M >= FEWEST_FOR_TILES && w.inputs % BYTES_AT_ONCE == 0;
    const int64_t next = in_tiles ? multiply_in_tiles(w, first, last, M, rows, out) : first;
    multiply_int16(w, first, next, last, M, rows, out);
}

}  // namespace vl2
