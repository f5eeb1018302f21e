// Rows as tiles take them: sixteen beside one another in words of four bytes, of four 8-bit numbers or two of bfloat16.
#pragma once
#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
#include <algorithm>
#include <vector>

#include "int8.h"
#include "lines.h"
#include "transpose.h"

namespace vl2 {

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
        : rows(rows), bytes(bytes), steps((bytes + STEP - 1) / STEP), whole_steps(bytes / STEP),
          vectors((rows + LANES - 1) / LANES), lines_(kept_lines(vectors * steps * LANES)) {}

    const int64_t rows, bytes, steps, whole_steps, vectors;  // steps along a row; vectors of sixteen rows

    char* vector(int64_t v) const { return reinterpret_cast<char*>(lines_) + v * steps * TILE_BYTES; }
    __mmask64 tail() const { return (uint64_t(1) << (bytes - whole_steps * STEP)) - 1; }

    // A vector, of rows that lie where `row_at` says. Bytes behind the last are zeros, and so are the rows behind the last.
    template <class RowAt>
    void pack(int64_t v, const RowAt& row_at) const {
        fill(v, [&](int64_t row, int64_t byte, __mmask64 kept) {
            return _mm512_maskz_loadu_epi8(kept, reinterpret_cast<const uint8_t*>(row_at(row)) + byte);
        });
    }

    // The same, a byte of each number, of bfloat16 rows, `stride` numbers from one to the next, rounded as to_int8_row does it.
    // Their scales are [rows].
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
            const __mmask64 kept = step < whole_steps ? ~__mmask64(0) : tail();
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
            return (__m128i)lowest_bytes(with_code((Floats)_mm512_slli_epi32(words, 16), factor));
        };
        const __m256i lower = _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(0)), quarter(1), 1);
        const __m256i upper = _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(2)), quarter(3), 1);
        return _mm512_inserti64x4(_mm512_castsi256_si512(lower), upper, 1);
    }
};

}  // namespace vl2
#endif
