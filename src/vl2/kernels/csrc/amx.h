// Products in tile registers, of which the processors with AMX have eight, each of sixteen rows of 64 bytes.
//
// A tile of a weight is sixteen of its rows as they lie in memory; a tile of activations is sixteen rows beside one
// another in pairs of channels, as the bfloat16 dot product of AVX-512 takes them. So both need the same packing, and
// weights none.
#pragma once
#if defined(__AMX_BF16__)
#include <immintrin.h>

#include <algorithm>

#include "matmul.h"
#include "tile_registers.h"

namespace vl2 {

// Two blocks of sixteen rows of a weight, `row` elements apart.
struct Blocks {
    const bf16 *one, *two;
    int64_t row;
};

// Two blocks of sixteen outputs, or with B = 1 the first, for V vectors of sixteen rows, 1 or 2: sums [16][stride] of each
// block, to which those that `sums` hold already are added where `is_more`. `x` holds pairs of channels, `stride` words from
// one to the next; `width` channels are added up, a multiple of 32. `beside` is called with every 32 of them, to ask for
// what comes next: a tile reads sixteen places far apart, which no processor foresees.
template <int V, int B = 2, class Beside>
void multiply_blocks(const uint32_t* x, int64_t stride, const Blocks& weight, int64_t width, float* sums_one,
                     float* sums_two, const Beside& beside, bool is_more = false) {
    static_assert((V == 1 || V == 2) && (B == 1 || B == 2));
    const int64_t step = 4 * stride, row = 2 * weight.row;
    const bf16 *one = weight.one, *two = weight.two;
    if (is_more) {
        _tile_loadd(0, sums_one, step);
        if constexpr (B == 2) _tile_loadd(1, sums_two, step);
        if constexpr (V == 2) {
            _tile_loadd(2, sums_one + LANES, step);
            if constexpr (B == 2) _tile_loadd(3, sums_two + LANES, step);
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
        beside();
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

// Channels whose tiles of two blocks, and of two vectors beside them, the first cache holds: 16 KB each.
constexpr int64_t CHANNELS_AT_ONCE = 256;

// The same for V vectors, `row` being from one row of the blocks to the next. Some channels of the blocks go over all vectors before
// the next do, so that the second cache, which fills tiles at half the rate at which they multiply, gives them only once.
template <int V, class Beside>
void multiply_all_blocks(const uint32_t* x, const bf16* one, const bf16* two, int64_t row, int64_t width, float* sums_one,
                         float* sums_two, const Beside& beside, bool is_more) {
    constexpr int64_t STRIDE = V * LANES;
    const int64_t at_once = V > 2 ? CHANNELS_AT_ONCE : width;
    for (int64_t first = 0; first < width; first += at_once, x += at_once / 2 * STRIDE) {
        const Blocks weight{one + first, two + first, row};
        const int64_t channels = std::min(at_once, width - first);
        for (int v = 0; v + 2 <= V; v += 2)
            multiply_blocks<2>(x + v * LANES, STRIDE, weight, channels, sums_one + v * LANES, sums_two + v * LANES, beside,
                               is_more || first > 0);
        if constexpr (V % 2 != 0) {
            constexpr int64_t LAST = (V - 1) * LANES;
            multiply_blocks<1>(x + LAST, STRIDE, weight, channels, sums_one + LAST, sums_two + LAST, beside,
                               is_more || first > 0);
        }
    }
}

}  // namespace vl2
#endif
