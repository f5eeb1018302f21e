// `multiply` for int8 weights and five rows or more, in tile registers.
//
// In: Int16Rows, as matmul_quantized_avx512.h packs them, and a weight whose rows are multiples of 64 inputs. Out: the
// same bits that its vectors give, for whole pairs of blocks of sixteen outputs; the rest is left to them. Included
// there alone. A tile of the weight is sixteen of its rows as they lie in memory.
#pragma once
#include "amx.h"

namespace vl2 {

// Sixteen rows' high bytes as one vector, their low bytes as the next, and so on.
inline RowsInTiles pack_bytes(const Int16Rows& x, int M) {
    const RowsInTiles tiles((M + 15) / 16 * 32, x.width());
    for (int64_t v = 0; v < tiles.vectors; v++)
        tiles.pack(v, [&](int64_t packed) {
            // Behind the last: thrown away later.
            const int row = std::min(static_cast<int>(packed / 32 * 16 + packed % 16), M - 1);
            return v % 2 ? x.low(row) : x.high(row);
        });
    return tiles;
}

// Sums of the high and of the low bytes of two blocks of sixteen outputs with one vector of rows: [high,
// low][block][output, row]. Meanwhile what comes next is prefetched, evenly between the tiles, or all fill buffers
// would be taken at once.
inline void multiply_bytes(const int8_t* weight, int64_t inputs, const char* high, const char* low,
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

// Thirty-two outputs each time, for up to sixteen rows at a time. The inputs are a multiple of 64. Returns the first
// output that was not computed.
inline int64_t multiply_in_tiles(const Matrix& w, int64_t first, int64_t last, int M, const Int16Rows& x,
                                 float* const* out) {
    const RowsInTiles tiles = pack_bytes(x, M);
    const float* scales = reinterpret_cast<const float*>(w.scales);
    const TileRegisters registers;
    int64_t n = first;
    for (; n + 32 <= last; n += 32) {
        const uint8_t* weight = w.codes + n * w.inputs;
        Prefetch prefetch{weight + 32 * w.inputs, 8};
        for (int row = 0; row < M; row += 16) {
            alignas(64) int32_t sums[2][2][SUMS];
            const char *high = tiles.vector(row / 8), *low = tiles.vector(row / 8 + 1);
            multiply_bytes(reinterpret_cast<const int8_t*>(weight), w.inputs, high, low, sums, prefetch);
            prefetch.lines = 0;
            const int count = std::min(16, M - row);
            const __m512 row_scales = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), &x.scales[row]);
            for (int block = 0; block < 2; block++) {
                __m512i results[16];  // of an output each, then of a row each
                for (int i = 0; i < 16; i++) {
                    const __m512i high = _mm512_load_si512(sums[0][block] + 16 * i);
                    const __m512i low = _mm512_load_si512(sums[1][block] + 16 * i);
                    const __m512 scaled =
                        _mm512_mul_ps(combine_bytes(high, low), _mm512_set1_ps(scales[n + 16 * block + i]));
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

}  // namespace vl2
