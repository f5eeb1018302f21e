// A whole product of 8-bit rows and an int8 weight in tile registers, from the codes to what leaves the layer.
//
// As in amx.h a tile of the weight is sixteen of its rows as they lie in memory, here of 64 channels, and the rows that it
// meets lie beside one another in fours of channels, packed once for all outputs. Sums are whole numbers and thus exact;
// what is made of them, and in which order, is eight_bits.h's: both ways give the same bits.
#pragma once
#include <algorithm>
#include <vector>

#include "amx.h"
#include "blocks.h"
#include "eight_bits.h"

namespace vl2 {

// Held the same in Python, as a ctypes structure.
struct EightBits {
    const int8_t* x;          // [rows, inputs]
    const float* row_scales;  // [rows]
    int64_t rows, inputs;
    const int8_t* weight;        // [outputs, inputs]
    const float* column_scales;  // [outputs]
    const bf16* bias;            // [outputs]; null: none
    int64_t outputs, gelu;       // gelu: the tanh GELU of the result
    bf16* out;                   // [rows, outputs]
};

#if defined(__AMX_BF16__) && defined(__AMX_INT8__)

constexpr int64_t TILE_BYTES = 1024, STEP = 64;  // a tile, and the channels that it takes of each row
constexpr int64_t CHUNK_BYTES = 1 << 20;         // of packed rows, which the second cache holds beside all else
constexpr int64_t BLOCK = 2 * LANES;             // outputs, and rows, of four tiles of sums
constexpr int64_t SUMS = LANES * LANES;          // of a tile

// Memory that a thread keeps for its next call: new pages would be cleared first, each time.
inline Line* kept_lines(int64_t count) {
    static thread_local std::vector<Line> lines;
    if (static_cast<int64_t>(lines.size()) < count) lines = std::vector<Line>(count);
    return lines.data();
}

class EightBitsInTiles {
   public:
    explicit EightBitsInTiles(const EightBits& p)
        : steps((p.inputs + STEP - 1) / STEP), vectors(round_up(p.rows, BLOCK) / LANES), p_(p),
          whole_steps_(p.inputs / STEP), packed_(kept_lines(vectors * steps * LANES)) {}

    const int64_t steps, vectors;  // of channels; of sixteen rows

    // Channels behind the last are zeros, and so are the rows behind the last.
    void pack(int64_t v) {
        char* to = vector(v);
        for (int64_t step = 0; step < steps; step++, to += TILE_BYTES) {
            const __mmask64 kept = step < whole_steps_ ? ~__mmask64(0) : tail();
            __m512i block[16];
            for (int64_t m = 0; m < LANES; m++) {
                const int64_t row = v * LANES + m;
                block[m] = row < p_.rows ? _mm512_maskz_loadu_epi8(kept, p_.x + row * p_.inputs + step * STEP)
                                         : _mm512_setzero_si512();
            }
            transpose(block);
            for (int64_t i = 0; i < LANES; i++) _mm512_storeu_si512(to + i * 64, block[i]);
        }
    }

    // 32 outputs from a multiple of 32 on, for two vectors of rows after another. Meanwhile, evenly over the steps, memory is
    // asked for the outputs `distance` further, which this thread probably takes next.
    void multiply(int64_t first, int64_t first_vector, int64_t last_vector, int64_t distance) {
        // Of a single block of sixteen the second pair of tiles is the first once more, and is thrown away.
        const int64_t other = first + LANES < p_.outputs ? LANES : 0, inputs = p_.inputs;
        const int8_t *one = p_.weight + first * inputs, *two = one + other * inputs;
        alignas(64) int8_t tails[2][LANES][STEP];
        if (steps > whole_steps_)
            for (int64_t n = 0; n < LANES; n++)
                for (int half = 0; half < 2; half++) {
                    const int8_t* from = (half ? two : one) + n * inputs + whole_steps_ * STEP;
                    _mm512_store_si512(tails[half][n], _mm512_maskz_loadu_epi8(tail(), from));
                }
        const int64_t lines = (BLOCK * inputs + 63) / 64, turns = (last_vector - first_vector) / 2 * whole_steps_;
        const bool is_there = first + distance + BLOCK <= p_.outputs && turns > 0;
        Ahead ahead{reinterpret_cast<const uint8_t*>(one + distance * inputs),
                    is_there ? static_cast<int>((lines + turns - 1) / turns) : 0};
        alignas(64) int32_t sums[2][2][SUMS];  // [vector][sixteen outputs][output, row]
        for (int64_t v = first_vector; v < last_vector; v += 2) {
            const char *left = vector(v), *right = vector(v + 1);
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int64_t step = 0; step < steps; step++) {
                if (step < whole_steps_) {
                    ahead.step();
                    _tile_loadd(4, one + step * STEP, inputs);
                    _tile_loadd(5, two + step * STEP, inputs);
                } else {
                    _tile_loadd(4, tails[0], STEP);
                    _tile_loadd(5, tails[1], STEP);
                }
                _tile_loadd(6, left + step * TILE_BYTES, 64);
                _tile_dpbssd(0, 4, 6);
                _tile_dpbssd(1, 5, 6);
                _tile_loadd(7, right + step * TILE_BYTES, 64);
                _tile_dpbssd(2, 4, 7);
                _tile_dpbssd(3, 5, 7);
            }
            _tile_stored(0, sums[0][0], 64);
            _tile_stored(1, sums[0][1], 64);
            _tile_stored(2, sums[1][0], 64);
            _tile_stored(3, sums[1][1], 64);
            for (int64_t side = 0; side < 2; side++) finish(sums[side], v + side, first, other);
        }
    }

   private:
    const EightBits& p_;
    const int64_t whole_steps_;
    Line* const packed_;  // [vectors][steps][16 fours of channels], a Line of sixteen rows each

    char* vector(int64_t v) { return reinterpret_cast<char*>(packed_) + v * steps * TILE_BYTES; }
    __mmask64 tail() const { return (uint64_t(1) << (p_.inputs - whole_steps_ * STEP)) - 1; }

    // Sums [output, row] of 32 outputs, or of 16 twice, and 16 rows, as from_int32_sums makes them.
    void finish(const int32_t (*sums)[SUMS], int64_t v, int64_t first, int64_t other) {
        const int64_t row = v * LANES, count = std::min<int64_t>(LANES, p_.rows - row);
        if (count <= 0) return;
        float scales[LANES] = {};
        std::copy(p_.row_scales + row, p_.row_scales + row + count, scales);
        const Floats row_scales = load(scales);
        __m512i block[16];  // of a pair of outputs each, then of a row each
        for (int64_t half = 0; half < 2; half++)
            for (int64_t n = 0; n < LANES; n += 2) {
                Floats value[2];
                for (int64_t i = 0; i < 2; i++) {
                    const int64_t output = first + half * other + n + i;
                    Ints whole;
                    std::memcpy(&whole, sums[half] + (n + i) * LANES, sizeof whole);
                    const Floats added = splat(p_.bias ? to_float(p_.bias[output]) : 0);
                    value[i] = scaled_sum(whole, row_scales, splat(p_.column_scales[output]), added, p_.gelu);
                }
                block[half * LANES / 2 + n / 2] = in_pairs((__m512)value[0], (__m512)value[1]);
            }
        transpose(block);
        const __mmask32 kept = other ? ~__mmask32(0) : 0xffff;
        for (int64_t m = 0; m < count; m++)
            _mm512_mask_storeu_epi16(p_.out + (row + m) * p_.outputs + first, kept, block[m]);
    }
};

// Whether the shape was within what the kernel does; nothing is written where it was not.
inline bool multiply_eight_bits(const EightBits& p, int threads) {
    if (p.outputs % LANES || p.rows < 1) return false;
    EightBitsInTiles tiles(p);
    const int64_t most = std::max<int64_t>(2, CHUNK_BYTES / (tiles.steps * TILE_BYTES));  // vectors of a chunk
    const int64_t chunks = (tiles.vectors + most - 1) / most, pairs = tiles.vectors / 2;
    const int64_t blocks = (p.outputs + BLOCK - 1) / BLOCK;
    run_team(threads, [&](Team& team, int) {
        int phase = 0;
        team.each(tiles.vectors, phase, [&](int64_t v) { tiles.pack(v); });
        const TileRegisters registers;
        team.each(chunks * blocks, phase, [&](int64_t task) {
            const int64_t chunk = task / blocks, first = task % blocks * BLOCK;
            tiles.multiply(first, chunk * pairs / chunks * 2, (chunk + 1) * pairs / chunks * 2, team.size * BLOCK);
        });
    });
    return true;
}

#else

inline bool multiply_eight_bits(const EightBits&, int) { return false; }

#endif

}  // namespace vl2
