// Tile registers, which the processors with AMX have: eight, each of sixteen rows of 64 bytes.
//
// In: rows of bfloat16 or int8. Out: rows packed for tiles (RowsInTiles), and the bfloat16 microkernel
// (`multiply_blocks`). Used by every NAME_amx.h. A tile product adds, for sixteen rows of a weight as they lie in
// memory, their products with sixteen rows of activations that lie beside one another in words of two bfloat16 or four
// int8 numbers. So activations are packed, and weights never. TileRegisters must live while any of this runs.
// Throughout, tiles 0 to 3 are accumulators, 4 and 5 hold two blocks of a weight, 6 and 7 two vectors of sixteen rows:
// four loads feed four products. With eight registers no other split needs fewer loads.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <vector>

#include "int8.h"
#include "memory.h"

namespace vl2 {

// While it lives, the thread's tile registers are all of sixteen rows of 64 bytes.
struct TileRegisters {
    struct alignas(64) Shape {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    TileRegisters() {
        const Shape shape;
        _tile_loadconfig(&shape);
    }
    ~TileRegisters() { _tile_release(); }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;
};

constexpr int64_t TILE_BYTES = 1024, STEP = 64;  // a tile, and the bytes that it takes of each row
constexpr int64_t SUMS = LANES * LANES;          // of a tile

// Memory that a thread keeps for its next call: new pages would be cleared first, each time.
inline Line* kept_lines(int64_t count) {
    static thread_local std::vector<Line> lines;
    if (static_cast<int64_t>(lines.size()) < count) lines = std::vector<Line>(count);
    return lines.data();
}

// Rows of so many bytes: [vector][step][16 words], a Line of each.
struct RowsInTiles {
    RowsInTiles(int64_t rows, int64_t bytes)
        : rows(rows), bytes(bytes), steps((bytes + STEP - 1) / STEP), full_steps(bytes / STEP),
          vectors((rows + LANES - 1) / LANES), lines_(kept_lines(vectors * steps * LANES)) {}

    const int64_t rows, bytes, steps, full_steps, vectors;  // steps along a row; vectors of sixteen rows

    char* vector(int64_t v) const { return reinterpret_cast<char*>(lines_) + v * steps * TILE_BYTES; }
    __mmask64 tail() const { return (uint64_t(1) << (bytes - full_steps * STEP)) - 1; }

    // A vector, of rows that lie where `row_at` says. Bytes behind the last are zeros, and so are the rows behind the
    // last.
    template <class RowAt>
    void pack(int64_t v, const RowAt& row_at) const {
        fill(v, [&](int64_t row, int64_t byte, __mmask64 kept) {
            return _mm512_maskz_loadu_epi8(kept, reinterpret_cast<const uint8_t*>(row_at(row)) + byte);
        });
    }

    // The same of bfloat16 rows, `stride` numbers from one to the next, quantized to a byte each as to_int8_row does
    // it. Their scales are [rows].
    void round(int64_t v, const bf16* from, int64_t stride, float* scales) const {
        float factors[LANES];
        for (int64_t row = v * LANES; row < std::min(rows, (v + 1) * LANES); row++) {
            const float largest = largest_magnitude(from + row * stride, bytes);
            factors[row % LANES] = 127 / largest;
            scales[row] = largest / 127;
        }
        fill(v, [&](int64_t row, int64_t channel, __mmask64 kept) {
            return codes_of(from + row * stride + channel, kept, factors[row % LANES]);
        });
    }

   private:
    Line* const lines_;

    // `part` gives 64 bytes of a row from one of them on, zeros of those that are not kept.
    template <class Part>
    void fill(int64_t v, const Part& part) const {
        char* to = vector(v);
        for (int64_t step = 0; step < steps; step++, to += TILE_BYTES) {
            const __mmask64 kept = step < full_steps ? ~__mmask64(0) : tail();
            __m512i block[16];
            for (int64_t m = 0; m < LANES; m++) {
                const int64_t row = v * LANES + m;
                block[m] = row < rows ? part(row, step * STEP, kept) : _mm512_setzero_si512();
            }
            transpose(block);
            for (int64_t i = 0; i < LANES; i++) _mm512_storeu_si512(to + i * 64, block[i]);
        }
    }

    static __m512i codes_of(const bf16* x, __mmask64 kept, float factor) {
        const auto quarter = [&](int part) {
            const __mmask16 mask = static_cast<__mmask16>(kept >> 16 * part);
            const __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x + 16 * part));
            return (__m128i)lowest_bytes(code_words((Floats)_mm512_slli_epi32(words, 16), factor));
        };
        const __m256i lower = _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(0)), quarter(1), 1);
        const __m256i upper = _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(2)), quarter(3), 1);
        return _mm512_inserti64x4(_mm512_castsi256_si512(lower), upper, 1);
    }
};

// Two blocks of sixteen rows of a weight, `row` elements apart.
struct BlockPair {
    const bf16 *one, *two;
    int64_t row;
};

// Two blocks of sixteen outputs, or with B = 1 the first, for V vectors of sixteen rows, 1 or 2: sums [16][stride] of
// each block. They begin with what is at `start`, laid out the same, or with zeros where that is null. `x` holds pairs
// of channels, `stride` words from one to the next; `width` channels are added up, a multiple of 32. `between` is
// called with every 32 of them, to prefetch what comes next: a tile reads sixteen places far apart, which no processor
// foresees.
template <int V, int B = 2, class Between>
void multiply_blocks(const uint32_t* x, int64_t stride, const BlockPair& weight, int64_t width, float* sums_one,
                     float* sums_two, const Between& between, const float* start_one = nullptr,
                     const float* start_two = nullptr) {
    static_assert((V == 1 || V == 2) && (B == 1 || B == 2));
    const int64_t step = 4 * stride, row = 2 * weight.row;
    const bf16 *one = weight.one, *two = weight.two;
    if (start_one) {
        _tile_loadd(0, start_one, step);
        if constexpr (B == 2) _tile_loadd(1, start_two, step);
        if constexpr (V == 2) {
            _tile_loadd(2, start_one + LANES, step);
            if constexpr (B == 2) _tile_loadd(3, start_two + LANES, step);
        }
    } else {
        _tile_zero(0);
        if constexpr (B == 2) _tile_zero(1);
        if constexpr (V == 2) {
            _tile_zero(2);
            if constexpr (B == 2) _tile_zero(3);
        }
    }
    for (int64_t channel = 0; channel < width; channel += 32, x += 16 * stride) {
        between();
        _tile_loadd(4, one + channel, row);
        _tile_loadd(6, x, step);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (B == 2) {
            _tile_loadd(5, two + channel, row);
            _tile_dpbf16ps(1, 5, 6);
        }
        if constexpr (V == 2) {
            _tile_loadd(7, x + LANES, step);
            _tile_dpbf16ps(2, 4, 7);
            if constexpr (B == 2) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums_one, step);
    if constexpr (B == 2) _tile_stored(1, sums_two, step);
    if constexpr (V == 2) {
        _tile_stored(2, sums_one + LANES, step);
        if constexpr (B == 2) _tile_stored(3, sums_two + LANES, step);
    }
}

}  // namespace vl2
