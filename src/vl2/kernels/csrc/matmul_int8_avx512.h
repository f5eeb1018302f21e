// Products of a few rows with an int8 weight, in integers, with AVX-512 and, for more rows, tile registers.
//
// A row becomes integers by its own largest, see int16_activations.h, so no code is made a number. Sums are integers:
// they have the same bits in every order, so both ways give the same result, whatever rows are computed beside it.
#pragma once
#include <algorithm>
#include <vector>

#include "int8.h"
#include "rows_in_tiles.h"
#include "tile_registers.h"
#include "int16_activations.h"

namespace vl2 {

constexpr int64_t BYTES_AT_ONCE = 64;  // of a row: one vector

// Rows as integers, filled up with zeros to a multiple of 64.
class Int16Rows {
   public:
    // Rows of bfloat16 with zeros up to a multiple of 32 behind their `inputs`.
    void take(const bf16* const* x, int rows, int64_t inputs) {
        width_ = round_up(inputs, BYTES_AT_ONCE);
        bytes_.resize(std::max<size_t>(bytes_.size(), 2 * rows * width_));
        scales.resize(rows);
        sums.resize(rows);
        for (int row = 0; row < rows; row++) take_row(x[row], row, padded(inputs));
    }

    const int8_t* high(int row) const { return bytes_.data() + 2 * row * width_; }
    const int8_t* low(int row) const { return high(row) + width_; }
    int64_t width() const { return width_; }

    std::vector<float> scales;  // of each row
    std::vector<int64_t> sums;  // of each row

   private:
    int64_t width_ = 0;
    std::vector<int8_t> bytes_;

    void take_row(const bf16* x, int row, int64_t width) {
        const Fitted fit = fitted(bits<uint32_t>(largest_magnitude(x, width)) >> 16);
        const __m512 factor = _mm512_set1_ps(fit.factor);
        scales[row] = fit.scale;

        int8_t *high = bytes_.data() + 2 * row * width_, *low = high + width_;
        __m512i sum = _mm512_setzero_si512();
        for (int64_t k = 0; k < width; k += 16) {
            const __m512 value = (__m512)load(x + k);
            const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(value, factor));
            _mm_storeu_si128((__m128i*)(high + k), _mm512_cvtepi32_epi8(high_bytes(whole)));
            _mm_storeu_si128((__m128i*)(low + k), _mm512_cvtepi32_epi8(whole));
            sum = _mm512_add_epi32(sum, whole);
        }
        sums[row] = _mm512_reduce_add_epi32(sum);
        std::fill(high + width, high + width_, 0);
        std::fill(low + width, low + width_, 0);
    }
};

// 256 * high + low of eight sums.
inline __m512i joined(__m256i high, __m256i low) {
    return _mm512_add_epi64(_mm512_slli_epi64(_mm512_cvtepi32_epi64(high), 8), _mm512_cvtepi32_epi64(low));
}

// The same of sixteen, as floats, each rounded once.
inline __m512 joined(__m512i high, __m512i low) {
    const __m256 first = _mm512_cvtepi64_ps(joined(_mm512_castsi512_si256(high), _mm512_castsi512_si256(low)));
    const __m256 second =
        _mm512_cvtepi64_ps(joined(_mm512_extracti64x4_epi64(high, 1), _mm512_extracti64x4_epi64(low, 1)));
    return _mm512_insertf32x8(_mm512_castps256_ps512(first), second, 1);
}

// The sums of four vectors.
inline __m128i int_sums(const __m512i* lanes) {
    const auto pairs = [](__m512i a, __m512i b) {
        return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    };
    const __m512i ab = pairs(lanes[0], lanes[1]), cd = pairs(lanes[2], lanes[3]);
    const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// M rows of inputs, which lie as in Int16Rows, with R rows of weights: sums of the high and the low bytes, in column `q` and
// those behind it. The instruction takes one of its sides without sign, so codes are 128 more, which the sums are rid of later.
template <int M, int R>
inline void int16_dots(const uint8_t* weight, int64_t inputs, const int8_t* x, int64_t width,
                       __m512i (*high)[ROWS], __m512i (*low)[ROWS], int q, Prefetch& prefetch) {
    __m512i acc[2][M][R];
    for (int m = 0; m < M; m++)
        for (int r = 0; r < R; r++) acc[0][m][r] = acc[1][m][r] = _mm512_setzero_si512();
    const auto step = [&](int64_t k, __mmask64 kept) {
        __m512i w[R];
        for (int r = 0; r < R; r++)
            w[r] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(kept, weight + r * inputs + k), _mm512_set1_epi8(-128));
        if constexpr (R == 1) prefetch.line();
        else prefetch.step();
        for (int m = 0; m < M; m++) {
            const int8_t* row = x + 2 * m * width + k;
            const __m512i upper = _mm512_loadu_si512(row), lower = _mm512_loadu_si512(row + width);
            for (int r = 0; r < R; r++) {
                acc[0][m][r] = _mm512_dpbusd_epi32(acc[0][m][r], w[r], upper);
                acc[1][m][r] = _mm512_dpbusd_epi32(acc[1][m][r], w[r], lower);
            }
        }
    };
    int64_t k = 0;
    for (; k + BYTES_AT_ONCE <= inputs; k += BYTES_AT_ONCE) step(k, ~__mmask64(0));
    if (k < inputs) step(k, (uint64_t(1) << (inputs - k)) - 1);
    for (int m = 0; m < M; m++)
        for (int r = 0; r < R; r++) {
            high[m][q + r] = acc[0][m][r];
            low[m][q + r] = acc[1][m][r];
        }
}

constexpr int WHOLE_TILE = 3;      // rows of inputs at a time: with four of weights, 24 registers of sums
constexpr int MOST_OF_STREAM = 4;  // rows of inputs at once over one row of weights after another

template <int R>
inline void int16_dots(int M, const uint8_t* weight, int64_t inputs, const int8_t* x, int64_t width,
                       __m512i (*high)[ROWS], __m512i (*low)[ROWS], int q, Prefetch& prefetch) {
    switch (M) {
        case 1: return int16_dots<1, R>(weight, inputs, x, width, high, low, q, prefetch);
        case 2: return int16_dots<2, R>(weight, inputs, x, width, high, low, q, prefetch);
        case 3: return int16_dots<3, R>(weight, inputs, x, width, high, low, q, prefetch);
    }
    if constexpr (R == 1) int16_dots<4, R>(weight, inputs, x, width, high, low, q, prefetch);
}

// Outputs first to last of M rows; `start` is the one that `out` begins with.
inline void multiply_int16(const Matrix& w, int64_t start, int64_t first, int64_t last, int M, const Int16Rows& x,
                           float* const* out) {
    const float* scales = reinterpret_cast<const float*>(w.scales);
    const bool is_stream = M <= MOST_OF_STREAM;
    const int tile = is_stream ? M : WHOLE_TILE, num_tiles = (M + tile - 1) / tile;
    for (int64_t n = first; n < last; n += ROWS) {
        const int rows = static_cast<int>(std::min<int64_t>(ROWS, last - n));
        const uint8_t* weight = w.codes + n * w.inputs;
        Prefetch prefetch{weight + PREFETCH_BYTES, (ROWS + num_tiles - 1) / num_tiles};
        for (int m = 0; m < M; m += tile) {
            const int count = std::min(tile, M - m);
            const int8_t* bytes = x.high(m);
            __m512i high[MOST_OF_STREAM][ROWS], low[MOST_OF_STREAM][ROWS];
            if (rows == ROWS && !is_stream)
                int16_dots<ROWS>(count, weight, w.inputs, bytes, x.width(), high, low, 0, prefetch);
            else
                for (int r = 0; r < ROWS; r++) {
                    const uint8_t* row = weight + std::min(r, rows - 1) * w.inputs;
                    int16_dots<1>(count, row, w.inputs, bytes, x.width(), high, low, r, prefetch);
                }
            for (int i = 0; i < count; i++) {
                const __m256i upper = _mm256_castsi128_si256(int_sums(high[i]));
                const __m256i lower = _mm256_castsi128_si256(int_sums(low[i]));
                const __m512i total = _mm512_sub_epi64(joined(upper, lower), _mm512_set1_epi64(128 * x.sums[m + i]));
                float four[8];
                _mm256_storeu_ps(four, _mm512_cvtepi64_ps(total));
                for (int r = 0; r < rows; r++) out[m + i][n + r - start] = four[r] * scales[n + r] * x.scales[m + i];
            }
        }
    }
}

#if defined(__AMX_INT8__)

constexpr int FEWEST_FOR_TILES = 5;

// Sixteen rows' high bytes as one vector, their low bytes as the next, and so on.
inline RowsInTiles in_fours(const Int16Rows& x, int M) {
    const RowsInTiles tiles((M + 15) / 16 * 32, x.width());
    for (int64_t v = 0; v < tiles.vectors; v++)
        tiles.pack(v, [&](int64_t packed) {
            const int row = std::min(static_cast<int>(packed / 32 * 16 + packed % 16), M - 1);  // behind the last: thrown away later
            return v % 2 ? x.low(row) : x.high(row);
        });
    return tiles;
}

// Sums of the high and of the low bytes of two blocks of sixteen outputs with one vector of rows: [high, low][block][output,
// row]. Meanwhile memory is asked for what comes next, evenly between the tiles, or the places where lines wait would all be
// taken at once.
inline void add_up(const int8_t* weight, int64_t inputs, const char* high, const char* low,
                   int32_t (*sums)[2][SUMS], Prefetch& prefetch) {
    const int8_t* other = weight + 16 * inputs;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t channel = 0; channel < inputs; channel += STEP, high += TILE_BYTES, low += TILE_BYTES) {
        prefetch.step();
        _tile_loadd(4, weight + channel, inputs);
        _tile_loadd(6, high, 64);
        _tile_dpbssd(0, 4, 6);
        prefetch.step();
        _tile_loadd(5, other + channel, inputs);
        _tile_dpbssd(1, 5, 6);
        prefetch.step();
        _tile_loadd(7, low, 64);
        _tile_dpbssd(2, 4, 7);
        prefetch.step();
        _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, sums[0][0], 64);
    _tile_stored(1, sums[0][1], 64);
    _tile_stored(2, sums[1][0], 64);
    _tile_stored(3, sums[1][1], 64);
}

// Thirty-two outputs each time, for up to sixteen rows at a time. The inputs are a multiple of 64. Returns the first output that
// was not computed.
inline int64_t multiply_in_tiles(const Matrix& w, int64_t first, int64_t last, int M, const Int16Rows& x, float* const* out) {
    const RowsInTiles tiles = in_fours(x, M);
    const float* scales = reinterpret_cast<const float*>(w.scales);
    const TileRegisters registers;
    int64_t n = first;
    for (; n + 32 <= last; n += 32) {
        const uint8_t* weight = w.codes + n * w.inputs;
        Prefetch prefetch{weight + 32 * w.inputs, 8};
        for (int row = 0; row < M; row += 16) {
            alignas(64) int32_t sums[2][2][SUMS];
            const char *high = tiles.vector(row / 8), *low = tiles.vector(row / 8 + 1);
            add_up(reinterpret_cast<const int8_t*>(weight), w.inputs, high, low, sums, prefetch);
            prefetch.lines = 0;
            const int count = std::min(16, M - row);
            const __m512 row_scales = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), &x.scales[row]);
            for (int block = 0; block < 2; block++) {
                __m512i results[16];  // of an output each, then of a row each
                for (int i = 0; i < 16; i++) {
                    const __m512i high = _mm512_load_si512(sums[0][block] + 16 * i);
                    const __m512i low = _mm512_load_si512(sums[1][block] + 16 * i);
                    const __m512 scaled = _mm512_mul_ps(joined(high, low), _mm512_set1_ps(scales[n + 16 * block + i]));
                    results[i] = _mm512_castps_si512(_mm512_mul_ps(scaled, row_scales));
                }
                transpose(results);
                for (int m = 0; m < count; m++)
                    _mm512_storeu_si512(out[row + m] + n + 16 * block - first, results[m]);
            }
        }
    }
    return n;
}

#endif

// Outputs first to last of M rows.
inline void multiply_int8(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x, float* const* out) {
    static thread_local Int16Rows rows;
    rows.take(x, M, w.inputs);
    int64_t next = first;
#if defined(__AMX_INT8__)
    if (M >= FEWEST_FOR_TILES && w.inputs % BYTES_AT_ONCE == 0)
        next = multiply_in_tiles(w, first, last, M, rows, out);
#endif
    multiply_int16(w, first, next, last, M, rows, out);
}

}  // namespace vl2
