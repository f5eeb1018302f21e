// A whole product in whole numbers in tile registers: from rows of bfloat16, which are rounded to 8 bits as they are packed,
// and an int8 weight to what leaves the layer.
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
#include "rows_in_fours.h"

namespace vl2 {

// Held the same in Python, as a ctypes structure.
struct EightBits {
    const bf16* x;  // [rows, inputs], `x_stride` numbers from one row to the next
    int64_t rows, inputs, x_stride;
    const int8_t* weight;        // [outputs, inputs]
    const float* column_scales;  // [outputs]
    const bf16* bias;            // [outputs]; null: none
    int64_t outputs, gelu;       // gelu: the tanh GELU of the result
    const bf16* onto;            // [rows, outputs], to which the result, rounded, is added; null: none
    bf16* out;                   // [rows, outputs], `out_stride` from one row to the next
    int64_t out_stride;
};

#if defined(__AMX_BF16__) && defined(__AMX_INT8__)

constexpr int64_t CHUNK_BYTES = 1 << 20;         // of packed rows, which the second cache holds beside all else
constexpr int64_t BLOCK = 2 * LANES;             // outputs, and rows, of four tiles of sums
constexpr int64_t STEPS_AT_ONCE = 9, VECTORS_AT_ONCE = 6;  // 18 KB of a weight, and of two vectors each time

// Rows of 64 bytes to which something will be added: a few are asked for at each step.
struct Onto {
    const bf16* row;
    int64_t stride, count;

    void step() {
        for (int i = 0; i < 2 && count; i++, count--, row += stride) __builtin_prefetch(row, 0, 2);
    }
};

// A product of rows that are packed, with their scales; of `p` its rows are not read.
class ProductInTiles {
   public:
    ProductInTiles(const EightBits& p, const RowsInFours& x, const float* row_scales, bool is_far)
        : p_(p), x_(x), row_scales_(row_scales), is_far_(is_far) {}

    // 32 outputs from a multiple of 32 on, for two vectors of rows after another. Meanwhile, evenly over the steps, memory is
    // asked for the outputs `distance` further, which this thread probably takes next.
    void multiply(int64_t first, int64_t first_vector, int64_t last_vector, int64_t distance) {
        // Of a single block of sixteen the second pair of tiles is the first once more, and is thrown away.
        const int64_t other = first + LANES < p_.outputs ? LANES : 0, inputs = p_.inputs;
        Weight weight{p_.weight + first * inputs, p_.weight + (first + other) * inputs};
        if (x_.steps > x_.whole_steps)
            for (int64_t n = 0; n < LANES; n++)
                for (int half = 0; half < 2; half++) {
                    const int8_t* from = (half ? weight.two : weight.one) + n * inputs + x_.whole_steps * STEP;
                    _mm512_store_si512(weight.tails[half][n], _mm512_maskz_loadu_epi8(x_.tail(), from));
                }
        const int64_t lines = (BLOCK * inputs + 63) / 64, turns = (last_vector - first_vector + 1) / 2 * x_.whole_steps;
        AheadInStreams ahead;
        if (first + distance + BLOCK <= p_.outputs && turns > 0)
            ahead = AheadInStreams(reinterpret_cast<const uint8_t*>(weight.one + distance * inputs), lines, turns);
        for (int64_t v = first_vector; v < last_vector; v += VECTORS_AT_ONCE)
            multiply_vectors(weight, v, std::min(VECTORS_AT_ONCE, last_vector - v), first, other, ahead);
    }

   private:
    const EightBits& p_;
    const RowsInFours& x_;
    const float* const row_scales_;
    const bool is_far_;  // the result is not read before much else is

    // Two blocks of sixteen rows of it, and what of them lies in the last step where that is not a whole one.
    struct Weight {
        const int8_t *one, *two;
        alignas(64) int8_t tails[2][LANES][STEP];
    };

    // Up to six vectors. Some channels of the weight go over all of them before the next do: the first cache holds their
    // tiles meanwhile, and the second, which fills tiles at half the rate at which they multiply, gives them only once.
    void multiply_vectors(const Weight& weight, int64_t v, int64_t count, int64_t first, int64_t other, AheadInStreams& ahead) {
        alignas(64) int32_t sums[VECTORS_AT_ONCE][2][SUMS];  // [vector][sixteen outputs][output, row]
        const int64_t row = v * LANES, rows = std::min((v + count) * LANES, p_.rows) - row;
        Onto onto{p_.onto + row * p_.outputs + first, p_.outputs, p_.onto ? rows : 0};
        const int64_t parts = count > 2 ? (x_.steps + STEPS_AT_ONCE - 1) / STEPS_AT_ONCE : 1;
        const int64_t at_once = (x_.steps + parts - 1) / parts;
        for (int64_t step = 0; step < x_.steps; step += at_once) {
            const int64_t last_step = std::min(x_.steps, step + at_once);
            int64_t i = 0;
            for (; i + 2 <= count; i += 2) add_up<2>(weight, v + i, step, last_step, sums + i, ahead, onto);
            if (i < count) add_up<1>(weight, v + i, step, last_step, sums + i, ahead, onto);
        }
        for (int64_t i = 0; i < count; i++) finish(sums[i], v + i, first, other);
    }

    // Some steps of V vectors, 1 or 2; from the second step on they are added to what `sums` hold.
    template <int V>
    void add_up(const Weight& weight, int64_t v, int64_t first_step, int64_t last_step, int32_t (*sums)[2][SUMS],
                AheadInStreams& ahead, Onto& onto) {
        const char *left = x_.vector(v), *right = x_.vector(v + V - 1);
        if (first_step) {
            _tile_loadd(0, sums[0][0], 64);
            _tile_loadd(1, sums[0][1], 64);
            if constexpr (V == 2) {
                _tile_loadd(2, sums[1][0], 64);
                _tile_loadd(3, sums[1][1], 64);
            }
        } else {
            _tile_zero(0);
            _tile_zero(1);
            if constexpr (V == 2) {
                _tile_zero(2);
                _tile_zero(3);
            }
        }
        for (int64_t step = first_step; step < last_step; step++) {
            if (step < x_.whole_steps) {
                ahead.step();
                onto.step();
                _tile_loadd(4, weight.one + step * STEP, p_.inputs);
                _tile_loadd(5, weight.two + step * STEP, p_.inputs);
            } else {
                _tile_loadd(4, weight.tails[0], STEP);
                _tile_loadd(5, weight.tails[1], STEP);
            }
            _tile_loadd(6, left + step * TILE_BYTES, 64);
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 5, 6);
            if constexpr (V == 2) {
                _tile_loadd(7, right + step * TILE_BYTES, 64);
                _tile_dpbssd(2, 4, 7);
                _tile_dpbssd(3, 5, 7);
            }
        }
        _tile_stored(0, sums[0][0], 64);
        _tile_stored(1, sums[0][1], 64);
        if constexpr (V == 2) {
            _tile_stored(2, sums[1][0], 64);
            _tile_stored(3, sums[1][1], 64);
        }
    }

    // 32 sums of bfloat16 numbers, each rounded.
    static __m512i sum_of_halves(__m512i a, __m512i b) {
        const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
        const auto even = [](__m512i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); };
        const auto odd = [&](__m512i x) { return _mm512_castsi512_ps(_mm512_and_si512(x, upper)); };
        return in_pairs(_mm512_add_ps(even(a), even(b)), _mm512_add_ps(odd(a), odd(b)));
    }

    // Sums [output, row] of 32 outputs, or of 16 twice, and 16 rows, as from_int32_sums makes them.
    void finish(const int32_t (*sums)[SUMS], int64_t v, int64_t first, int64_t other) {
        const int64_t row = v * LANES, count = std::min<int64_t>(LANES, p_.rows - row);
        float scales[LANES] = {};
        std::copy(row_scales_ + row, row_scales_ + row + count, scales);
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
        for (int64_t m = 0; m < count; m++) {
            const bf16* onto = p_.onto + (row + m) * p_.outputs + first;
            if (p_.onto) block[m] = sum_of_halves(block[m], _mm512_maskz_loadu_epi16(kept, onto));
            bf16* to = p_.out + (row + m) * p_.out_stride + first;
            if (is_far_ && other) store_past_caches(to, block[m]);
            else _mm512_mask_storeu_epi16(to, kept, block[m]);
        }
    }
};

// Whether the shape was within what the kernel does; nothing is written where it was not.
inline bool multiply_eight_bits(const EightBits& p, int threads) {
    if (p.outputs % LANES || p.rows < 1) return false;
    const RowsInFours x(p.rows, p.inputs);
    std::vector<float> scales(p.rows);
    ProductInTiles product(p, x, scales.data(), p.rows * p.outputs > CHUNK_BYTES);
    const int64_t most = std::max<int64_t>(2, CHUNK_BYTES / (x.steps * TILE_BYTES));  // vectors of a chunk
    const int64_t chunks = (x.vectors + most - 1) / most, pairs = (x.vectors + 1) / 2;
    const int64_t blocks = (p.outputs + BLOCK - 1) / BLOCK;
    run_team(threads, [&](Team& team, int) {
        int phase = 0;
        team.each(x.vectors, phase, [&](int64_t v) { x.round(v, p.x, p.x_stride, scales.data()); });
        const TileRegisters registers;
        team.each(chunks * blocks, phase, [&](int64_t task) {
            const int64_t chunk = task / blocks, first = task % blocks * BLOCK;
            const int64_t last_vector = std::min(x.vectors, (chunk + 1) * pairs / chunks * 2);
            product.multiply(first, chunk * pairs / chunks * 2, last_vector, team.size * BLOCK);
        });
    });
    return true;
}

#else

inline bool multiply_eight_bits(const EightBits&, int) { return false; }

#endif

}  // namespace vl2
