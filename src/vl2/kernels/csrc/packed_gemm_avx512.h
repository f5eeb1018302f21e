// Rows of bfloat16 packed into panels, and the microkernel that multiplies a panel with sixteen rows of two weights.
//
// In: rows of activations wherever they lie, and rows of a weight as they lie in memory, whole multiples of 32
// channels. Out: float32 sums, outputs by rows, from which the caller makes its own epilogue. Callers are the gated
// MLPs and the router of a prefill (prefill_moe_avx512.h). Sixteen rows lie beside one another in pairs of channels, as
// the bfloat16 dot product takes them, and each pair of a weight is broadcast over them: so weights are never packed,
// and a row's sums depend on that row alone. With tile registers the microkernel is that of packed_gemm_amx.h, on the
// same panels.
#pragma once
#include <algorithm>
#include <vector>

#include "matmul.h"
#include "memory.h"

namespace vl2 {

// Rows in panels of up to six vectors of sixteen: [panel][pair of channels][16 * vectors of the panel]. Six vectors of
// rows by four of a weight take 24 of the 32 registers for their sums. Rows are spread evenly: seven vectors make
// panels of four and three, not of six and one, for a panel of one loads a weight as often and multiplies less.
struct PackedRows {
    static constexpr int64_t MOST_VECTORS = 6;

    std::vector<int64_t> first;  // vector of each panel, and the end
    std::vector<Line> lines;
    int64_t pairs = 0;

    void resize(int64_t rows, int64_t channels) {
        const int64_t vectors = (rows + LANES - 1) / LANES, panels = (vectors + MOST_VECTORS - 1) / MOST_VECTORS;
        first.resize(panels + 1);
        for (int64_t p = 0; p <= panels; p++) first[p] = (p * vectors + panels - 1) / panels;
        pairs = channels / 2;
        if (static_cast<int64_t>(lines.size()) < vectors * pairs) lines.resize(vectors * pairs);
    }
    int64_t size() const { return static_cast<int64_t>(first.size()) - 1; }
    int64_t vectors(int64_t panel) const { return first[panel + 1] - first[panel]; }
    uint32_t* at(int64_t panel) { return lines[first[panel] * pairs].words; }
};

// Pack `rows` rows of `channels` channels, which lie where `row_at` says; rows behind the last are zeros. `between` is
// called with every sixteen rows and 32 channels, to prefetch what comes next.
template <class RowAt, class Between>
void pack_rows(int64_t rows, int64_t channels, PackedRows& packed, const RowAt& row_at, const Between& between) {
    packed.resize(rows, channels);
    for (int64_t panel = 0; panel < packed.size(); panel++) {
        const int64_t stride = packed.vectors(panel) * LANES;
        for (int64_t v = 0; v < packed.vectors(panel); v++) {
            const int64_t row = (packed.first[panel] + v) * LANES;
            uint32_t* to = packed.at(panel) + v * LANES;
            for (int64_t pair = 0; pair < packed.pairs; pair += 16) {
                between();
                __m512i block[16];
                for (int m = 0; m < 16; m++)
                    block[m] = row + m < rows ? _mm512_loadu_si512(row_at(row + m) + 2 * pair) : _mm512_setzero_si512();
                transpose(block);
                for (int c = 0; c < 16; c++) _mm512_storeu_si512(to + (pair + c) * stride, block[c]);
            }
        }
    }
}

// Where sixteen rows of an expert's weight lie, in whatever kind, or of bfloat16 some of their channels.
struct WeightBlock {
    const uint8_t* codes = nullptr;  // null: none
    int64_t bytes = 0;               // of all channels of all rows
    int64_t row_bytes = 0, part_bytes = 0;  // of bfloat16: of a whole row, and of the channels that are meant

    WeightBlock() = default;
    WeightBlock(const Stack& stack, int64_t expert, int64_t first)
        : WeightBlock(stack, expert, first, 0, stack.first.inputs) {}
    WeightBlock(const Stack& stack, int64_t expert, int64_t first, int64_t begin, int64_t end) {
        const int64_t inputs = stack.first.inputs;
        const bool is_bf16 = stack.first.kind == BF16;
        bytes = is_bf16 ? 2 * PANEL * inputs : inputs / GROUP * BLOCK_BYTES;
        codes = stack.at(expert).codes + first / PANEL * bytes + (is_bf16 ? 2 * begin : 0);
        row_bytes = is_bf16 ? 2 * inputs : 0;
        part_bytes = is_bf16 ? 2 * (end - begin) : 0;
    }
};

}  // namespace vl2

#if defined(VL2_AMX)
#include "packed_gemm_amx.h"
#else

namespace vl2 {

// What a thread must hold while it multiplies: nothing. With AMX, the tile registers.
struct MicrokernelState {};

// Nothing is prefetched: that was measured to pay with tile registers alone.
struct BlockPrefetch {
    BlockPrefetch(const WeightBlock&, int64_t) {}
    void step() {}
};

// Hidden channels that are made before the second product adds them up: all.
inline int64_t hidden_at_once(int64_t, int64_t hidden, int64_t) { return hidden; }

// Outputs of N rows of a weight for the 16 * V rows of a panel: sums [N][16 * V]. Not inlined: beside other code the
// compiler would not keep the sums in registers.
template <int V, int N>
__attribute__((noinline)) void multiply_panel(const uint32_t* x, int64_t pairs, const bf16* const* weight,
                                              float* sums) {
    __m512 acc[N][V];
    for (int n = 0; n < N; n++)
        for (int v = 0; v < V; v++) acc[n][v] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < pairs; pair++, x += V * LANES) {
        __m512bh rows[V];
        for (int v = 0; v < V; v++) rows[v] = (__m512bh)_mm512_loadu_si512(x + v * LANES);
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) {
            const __m512bh spread = broadcast_pair(weight[n] + 2 * pair);
            for (int v = 0; v < V; v++) acc[n][v] = _mm512_dpbf16_ps(acc[n][v], rows[v], spread);
        }
    }
    for (int n = 0; n < N; n++)
        for (int v = 0; v < V; v++) _mm512_storeu_ps(sums + (n * V + v) * LANES, acc[n][v]);
}

// Sixteen outputs each of two weights for the 16 * V rows of a panel: sums [16][16 * V] of each, which begin on a line;
// `stride` is from one row of a weight to the next. Eight rows of weights at a time, with more than three vectors four:
// N * V sums and V rows are at most 30 registers.
template <int V, class Between>
void multiply_two_blocks(const uint32_t* x, int64_t pairs, const bf16* one, const bf16* two, int64_t stride,
                         float* sums_one, float* sums_two, const Between&, bool = false) {
    constexpr int N = V > 3 ? 4 : 8, HALF = N / 2;
    for (int first = 0; first < 16; first += HALF) {
        const bf16* weight[N];
        for (int n = 0; n < HALF; n++) {
            weight[n] = one + (first + n) * stride;
            weight[HALF + n] = two + (first + n) * stride;
        }
        alignas(LINE_BYTES) float some[N * V * LANES];
        multiply_panel<V, N>(x, pairs, weight, some);
        std::memcpy(sums_one + first * V * LANES, some, sizeof some / 2);
        std::memcpy(sums_two + first * V * LANES, some + HALF * V * LANES, sizeof some / 2);
    }
}

}  // namespace vl2
#endif
