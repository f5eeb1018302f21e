// The microkernel of packed_gemm_avx512.h in tile registers, and the prefetch of the weight that it reads next.
//
// Included by packed_gemm_avx512.h alone, in place of its microkernel. A panel of packed rows is what a tile of
// activations wants as it stands, and a block of sixteen rows of a weight is a tile as it lies in memory.
#pragma once
#include "amx.h"

namespace vl2 {

using MicrokernelState = TileRegisters;

// The block of a weight that comes next, prefetched evenly over so many steps of products with the present one.
struct BlockPrefetch {
    StreamPrefetch prefetch;

    BlockPrefetch(const WeightBlock& next, int64_t steps) {
        constexpr int64_t LINE = LINE_BYTES;
        if (!next.codes) return;
        if (next.part_bytes < next.row_bytes)
            prefetch = {next.codes, PANEL, next.row_bytes, next.part_bytes / LINE * PANEL, steps};
        else prefetch = {next.codes, next.bytes / LINE, steps};
    }
    void step() { prefetch.step(); }
};

// What the second cache holds of hidden channels beside all else. The MLP of tiny's first layer, whose 6,848 channels
// do not fit, takes a quarter less so than with all of them at once.
constexpr int64_t HIDDEN_BYTES = 1 << 19;

// Hidden channels that are made before the second product adds them up: all, or a part where they are many. Int4 is
// always dequantized whole rows at a time, so there a part would unpack them again.
inline int64_t hidden_at_once(int64_t rows, int64_t hidden, int64_t kind) {
    if (kind != BF16) return hidden;
    const int64_t parts = (round_up(rows, LANES) * hidden * 2 + HIDDEN_BYTES - 1) / HIDDEN_BYTES;
    return round_up((hidden + parts - 1) / parts, 32);
}

// Channels at a time: their tiles of two blocks, and of two vectors of rows, are 16 KB each, which the first cache
// holds.
constexpr int64_t CHANNELS_AT_ONCE = 256;

// Sixteen outputs each of two weights for the 16 * V rows of a panel: sums [16][16 * V] of each; `stride` is from one
// row of a weight to the next. `between` is called with every 32 channels and two vectors; the sums are added to those
// that are there where `accumulate` says so. Some channels of the weights go over all vectors before the next do, so
// that the second cache, which fills tiles at half the rate at which they multiply, gives them only once.
template <int V, class Between>
void multiply_two_blocks(const uint32_t* x, int64_t pairs, const bf16* one, const bf16* two, int64_t stride,
                         float* sums_one, float* sums_two, const Between& between, bool accumulate = false) {
    constexpr int64_t PANEL_STRIDE = V * LANES;
    const int64_t width = 2 * pairs, at_once = V > 2 ? CHANNELS_AT_ONCE : width;
    for (int64_t first = 0; first < width; first += at_once, x += at_once / 2 * PANEL_STRIDE) {
        const BlockPair weight{one + first, two + first, stride};
        const int64_t channels = std::min(at_once, width - first);
        const bool is_added = accumulate || first > 0;
        const auto start = [&](const float* sums) { return is_added ? sums : nullptr; };
        for (int v = 0; v + 2 <= V; v += 2)
            multiply_blocks<2>(x + v * LANES, PANEL_STRIDE, weight, channels, sums_one + v * LANES,
                               sums_two + v * LANES, between, start(sums_one + v * LANES),
                               start(sums_two + v * LANES));
        if constexpr (V % 2 != 0) {
            constexpr int64_t LAST = (V - 1) * LANES;
            multiply_blocks<1>(x + LAST, PANEL_STRIDE, weight, channels, sums_one + LAST, sums_two + LAST, between,
                               start(sums_one + LAST), start(sums_two + LAST));
        }
    }
}

}  // namespace vl2
