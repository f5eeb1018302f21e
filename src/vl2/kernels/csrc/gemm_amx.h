// The product of gemm.h in tile registers: bfloat16, or int8 in integers, for which the rows are quantized as they are
// packed.
//
// In and out as gemm.h says, which alone includes this; prefill_moe_int8_amx.h uses ProductInTiles by itself. Rows are
// packed once for all outputs, in chunks that the second cache holds. Sums of integers are exact; what is made of them,
// and in which order, is int8.h's: with and without tile registers the bits are the same. A row's result depends on
// that row alone.
#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include "amx.h"
#include "int8.h"
#include "threads.h"

namespace vl2 {

// Of packed rows, which the second cache holds beside all else: with 512 KB and 1 MB products are 2 to 7 % slower.
constexpr int64_t PACKED_BYTES = 3 << 18;
constexpr int64_t BLOCK = 2 * LANES;  // outputs, and rows, of four tiles of accumulators
// Results of a product from which on they are stored past the caches: the next kernel begins to read them after they
// would have left the caches.
constexpr int64_t NONTEMPORAL_RESULTS = 1 << 20;
// Steps of a weight that go over all vectors before the next do: 18 KB of the weight and as much of two vectors, which
// the first cache holds. Four vectors, for their accumulators are memory in between; six and more are slower.
constexpr int64_t STEPS_AT_ONCE = 9, VECTORS_AT_ONCE = 4;

inline int64_t blocks_of(const RowsProduct& p) { return (p.outputs + BLOCK - 1) / BLOCK; }

// Rows of 64 bytes to which the epilogue will add: two are prefetched at each step, for the epilogue of a block begins
// right after its last product and would wait for memory.
struct Residual {
    const bf16* row;
    int64_t stride, count;

    void step() {
        for (int i = 0; i < 2 && count; i++, count--, row += stride) __builtin_prefetch(row, 0, 2);
    }
};

// A product of rows that are packed already, int8_t with their scales or bf16: `x` of `p` is not read. One object
// serves a thread for some rows; `multiply` is called for one block of 32 outputs after another.
template <class Number>
class ProductInTiles {
   public:
    ProductInTiles(const RowsProduct& p, const RowsInTiles& x, const float* row_scales, bool nontemporal)
        : p_(p), x_(x), row_scales_(row_scales), nontemporal_(nontemporal) {}

    // 32 outputs from a multiple of 32 on, or the last sixteen. Meanwhile, evenly over the steps, 32 rows of a weight
    // that come `next` are prefetched; null: none.
    void multiply(int64_t first, const uint8_t* next) {
        // Of a single block of sixteen the second pair of tiles is the first once more, and is thrown away.
        const int64_t other = first + LANES < p_.outputs ? LANES : 0;
        Weight weight{row_of_weight(first), row_of_weight(first + other)};
        if (x_.steps > x_.full_steps)
            for (int64_t n = 0; n < LANES; n++)
                for (int half = 0; half < 2; half++) {
                    const uint8_t* from = (half ? weight.two : weight.one) + n * x_.bytes + x_.full_steps * STEP;
                    _mm512_store_si512(weight.tails[half][n], _mm512_maskz_loadu_epi8(x_.tail(), from));
                }
        const int64_t lines = (BLOCK * x_.bytes + 63) / 64, num_steps = (x_.vectors + 1) / 2 * x_.full_steps;
        StreamPrefetch prefetch;
        if (next && num_steps > 0) prefetch = StreamPrefetch(next, lines, num_steps);
        for (int64_t v = 0; v < x_.vectors; v += VECTORS_AT_ONCE)
            multiply_vectors(weight, v, std::min(VECTORS_AT_ONCE, x_.vectors - v), first, other, prefetch);
    }

    // 32 rows of the weight from one on; null where there are no more so many.
    const uint8_t* rows_from(int64_t first) const {
        return first + BLOCK <= p_.outputs ? row_of_weight(first) : nullptr;
    }

   private:
    static constexpr bool IS_INT8 = std::is_same_v<Number, int8_t>;
    using Sum = std::conditional_t<IS_INT8, int32_t, float>;

    const RowsProduct& p_;
    const RowsInTiles& x_;
    const float* const row_scales_;
    const bool nontemporal_;  // the result is not read before much else is

    const uint8_t* row_of_weight(int64_t row) const { return static_cast<const uint8_t*>(p_.weight) + row * x_.bytes; }

    // Two blocks of sixteen rows of the weight, and a copy of what lies in the last step where that is not a full one:
    // a tile there would read beyond the weight.
    struct Weight {
        const uint8_t *one, *two;
        alignas(64) uint8_t tails[2][LANES][STEP];
    };

    // Up to four vectors. Some steps of the weight go over all of them before the next do: the first cache holds their
    // tiles meanwhile, and the second, which fills tiles at half the rate at which they multiply, gives them only once.
    void multiply_vectors(const Weight& weight, int64_t v, int64_t count, int64_t first, int64_t other,
                          StreamPrefetch& prefetch) {
        alignas(64) Sum sums[VECTORS_AT_ONCE][2][SUMS];  // [vector][sixteen outputs][output, row]
        const int64_t row = v * LANES, rows = std::min((v + count) * LANES, p_.rows) - row;
        Residual residual{p_.residual + row * p_.outputs + first, p_.outputs, p_.residual ? rows : 0};
        const int64_t parts = count > 2 ? (x_.steps + STEPS_AT_ONCE - 1) / STEPS_AT_ONCE : 1;
        const int64_t at_once = (x_.steps + parts - 1) / parts;
        for (int64_t step = 0; step < x_.steps; step += at_once) {
            const int64_t last_step = std::min(x_.steps, step + at_once);
            int64_t i = 0;
            for (; i + 2 <= count; i += 2) accumulate<2>(weight, v + i, step, last_step, sums + i, prefetch, residual);
            if (i < count) accumulate<1>(weight, v + i, step, last_step, sums + i, prefetch, residual);
        }
        for (int64_t i = 0; i < count; i++) epilogue(sums[i], v + i, first, other);
    }

    // Some steps of V vectors, 1 or 2; from the second step on they are added to what `sums` hold.
    template <int V>
    void accumulate(const Weight& weight, int64_t v, int64_t first_step, int64_t last_step, Sum (*sums)[2][SUMS],
                StreamPrefetch& prefetch, Residual& residual) {
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
            if (step < x_.full_steps) {
                prefetch.step();
                residual.step();
                _tile_loadd(4, weight.one + step * STEP, x_.bytes);
                _tile_loadd(5, weight.two + step * STEP, x_.bytes);
            } else {
                _tile_loadd(4, weight.tails[0], STEP);
                _tile_loadd(5, weight.tails[1], STEP);
            }
            _tile_loadd(6, left + step * TILE_BYTES, 64);
            // The compiler takes a register's number as a literal alone: not as a template's.
            if constexpr (IS_INT8) {
                _tile_dpbssd(0, 4, 6);
                _tile_dpbssd(1, 5, 6);
            } else {
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 5, 6);
            }
            if constexpr (V == 2) {
                _tile_loadd(7, right + step * TILE_BYTES, 64);
                if constexpr (IS_INT8) {
                    _tile_dpbssd(2, 4, 7);
                    _tile_dpbssd(3, 5, 7);
                } else {
                    _tile_dpbf16ps(2, 4, 7);
                    _tile_dpbf16ps(3, 5, 7);
                }
            }
        }
        _tile_stored(0, sums[0][0], 64);
        _tile_stored(1, sums[0][1], 64);
        if constexpr (V == 2) {
            _tile_stored(2, sums[1][0], 64);
            _tile_stored(3, sums[1][1], 64);
        }
    }

    // Add 32 bfloat16 numbers, each sum rounded.
    static __m512i add_bf16(__m512i a, __m512i b) {
        const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
        const auto even = [](__m512i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); };
        const auto odd = [&](__m512i x) { return _mm512_castsi512_ps(_mm512_and_si512(x, upper)); };
        return interleave_bf16(_mm512_add_ps(even(a), even(b)), _mm512_add_ps(odd(a), odd(b)));
    }

    // Sixteen sums of one output with scales, bias and activation: of integers by the expression of from_int32_sums.
    Floats scale_sums(const Sum* sums, int64_t output, Floats row_scales) const {
        const Floats bias = splat(p_.bias ? to_float(p_.bias[output]) : 0);
        if constexpr (IS_INT8) {
            Ints integers;
            std::memcpy(&integers, sums, sizeof integers);
            return dequantize_sum(integers, row_scales, splat(p_.column_scales[output]), bias, p_.activation);
        } else {
            const Floats value = load(sums) + bias;
            return p_.activation ? activate(rounded(value), p_.activation) : value;
        }
    }

    // The epilogue of sixteen rows: sums [output, row] of 32 outputs, or of 16 twice, become rows of bfloat16.
    void epilogue(const Sum (*sums)[SUMS], int64_t v, int64_t first, int64_t other) {
        const int64_t row = v * LANES, count = std::min<int64_t>(LANES, p_.rows - row);
        float scales[LANES] = {};
        if constexpr (IS_INT8) std::copy(row_scales_ + row, row_scales_ + row + count, scales);
        const Floats row_scales = load(scales);
        __m512i block[16];  // of a pair of outputs each, then of a row each
        for (int64_t half = 0; half < 2; half++)
            for (int64_t n = 0; n < LANES; n += 2) {
                Floats value[2];
                for (int64_t i = 0; i < 2; i++)
                    value[i] = scale_sums(sums[half] + (n + i) * LANES, first + half * other + n + i, row_scales);
                block[half * LANES / 2 + n / 2] = interleave_bf16((__m512)value[0], (__m512)value[1]);
            }
        transpose(block);
        const __mmask32 kept = other ? ~__mmask32(0) : 0xffff;
        for (int64_t m = 0; m < count; m++) {
            const bf16* residual = p_.residual + (row + m) * p_.outputs + first;
            if (p_.residual) block[m] = add_bf16(block[m], _mm512_maskz_loadu_epi16(kept, residual));
            bf16* to = p_.out + (row + m) * p_.out_stride + first;
            if (nontemporal_ && other) store_nontemporal(to, block[m]);
            else _mm512_mask_storeu_epi16(to, kept, block[m]);
        }
    }
};

// `count` products of the same rows, which are those of the first. Each thread takes some rows for all outputs, packed
// by itself: what another has just written lies in that one's cache. Of rows that are too few for all threads, each
// takes some of the outputs.
template <class Number>
void multiply_many_rows(const RowsProduct* products, int64_t count, int threads) {
    const RowsProduct& all = *products;
    const int64_t bytes = all.inputs * static_cast<int64_t>(sizeof(Number)), steps = (bytes + STEP - 1) / STEP;
    const int64_t pairs = (all.rows + 2 * LANES - 1) / (2 * LANES);
    int64_t blocks = 0;  // of all products, one behind another
    for (int64_t i = 0; i < count; i++) blocks += blocks_of(products[i]);
    const int64_t most = std::max<int64_t>(1, PACKED_BYTES / (2 * steps * TILE_BYTES));  // pairs of vectors
    const int64_t fewest = (pairs + most - 1) / most,
                  splits = fewest < threads ? std::min<int64_t>(threads, blocks) : 1;
    const int64_t chunks = std::min(pairs, splits > 1 ? fewest : round_up(fewest, threads));
    run_team(threads, [&](Team& team, int) {
        static thread_local std::vector<float> scales;
        const TileRegisters registers;
        int phase = 0;
        team.each(chunks * splits, phase, [&](int64_t task) {
            const int64_t chunk = task / splits, split = task % splits;
            const int64_t first_row = chunk * pairs / chunks * 2 * LANES;
            const int64_t rows = std::min(all.rows, (chunk + 1) * pairs / chunks * 2 * LANES) - first_row;
            const bf16* from = all.x + first_row * all.x_stride;
            scales.resize(rows);
            const RowsInTiles x(rows, bytes);
            for (int64_t v = 0; v < x.vectors; v++) {
                if constexpr (std::is_same_v<Number, int8_t>) x.round(v, from, all.x_stride, scales.data());
                else x.pack(v, [&](int64_t row) { return from + row * all.x_stride; });
            }
            const auto part_of = [&](int64_t i) {
                RowsProduct part = products[i];
                part.rows = rows;
                part.out += first_row * part.out_stride;
                if (part.residual) part.residual += first_row * part.outputs;
                return part;
            };
            int64_t block = split * blocks / splits, last = (split + 1) * blocks / splits;
            for (int64_t i = 0; i < count && last > 0; i++) {
                const RowsProduct part = part_of(i);
                ProductInTiles<Number> product(part, x, scales.data(), all.rows * part.outputs > NONTEMPORAL_RESULTS);
                const int64_t num_blocks = blocks_of(part);
                for (; block < std::min(num_blocks, last); block++) {
                    const uint8_t* next = nullptr;
                    if (block + 1 < std::min(num_blocks, last)) next = product.rows_from((block + 1) * BLOCK);
                    else if (block + 1 < last) next = static_cast<const uint8_t*>(products[i + 1].weight);
                    product.multiply(block * BLOCK, next);
                }
                block -= num_blocks;
                last -= num_blocks;
            }
        });
    });
}

// Whether the shapes were within what the kernel does; nothing is written where they were not. Weights are of one kind.
inline bool multiply_many_rows(const RowsProduct* products, int64_t count, int threads) {
    const RowsProduct& p = *products;
    if (p.rows < 1 || p.inputs < 1) return false;
    int64_t outputs = 0;
    for (int64_t i = 0; i < count; i++) {
        if (products[i].outputs % LANES || products[i].kind != p.kind || products[i].inputs != p.inputs) return false;
        outputs += products[i].outputs;
    }
    const int64_t weights = outputs * p.inputs;
    threads = useful_threads(threads, weights * (p.kind == INT8 ? 1 : 2), weights * p.rows);
    if (p.kind == INT8) multiply_many_rows<int8_t>(products, count, threads);
    else if (p.kind == BF16) multiply_many_rows<bf16>(products, count, threads);
    else return false;
    return true;
}

}  // namespace vl2
