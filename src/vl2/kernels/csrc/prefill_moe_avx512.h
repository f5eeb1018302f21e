// The experts of a prefill and its router, on rows packed for the bfloat16 dot product of AVX-512 or for tile
// registers.
//
// In: tasks, each some rows of one expert, and the weights of experts in bfloat16 or int4; int8 goes to
// prefill_moe_int8_amx.h. Out: the rows after the expert's gated MLP, rounded where the plain model rounds. Called by
// prefill_moe.h alone. The rows of a task are packed once; each block of a weight is read once for up to 256 rows (and
// its codes made bfloat16 once), and what leaves the gate already lies as the second product wants it. A row's result
// depends on that row alone.
#pragma once
#include <algorithm>
#include <vector>

#include "int4.h"
#include "packed_gemm_avx512.h"

namespace vl2 {

// Sixteen rows of an expert's weight from a multiple of sixteen on: where they lie, or int4 made bfloat16 in `scratch`.
// Those that come next are prefetched meanwhile, evenly over so many steps of products with these and of their
// epilogue.
struct WeightPanel {
    const bf16* rows;
    BlockPrefetch prefetch;

    WeightPanel(const Stack& stack, int64_t expert, int64_t first, const WeightBlock& next, int64_t steps,
                std::vector<Line>& scratch)
        : rows(rows_of(stack, expert, first, scratch)), prefetch(next, steps) {}

   private:
    static const bf16* rows_of(const Stack& stack, int64_t expert, int64_t first, std::vector<Line>& scratch) {
        const WeightBlock block(stack, expert, first);
        if (stack.first.kind == BF16) return reinterpret_cast<const bf16*>(block.codes);
        const int64_t inputs = stack.first.inputs, groups = inputs / GROUP;
        scratch.resize(std::max<size_t>(scratch.size(), PANEL * inputs / GROUP));
        bf16* rows = reinterpret_cast<bf16*>(scratch.data());
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(stack.at(expert).scales) + first * groups;
        dequantize_panel(block.codes, scales, groups, rows);
        return rows;
    }
};

// Two vectors, each rounded to bfloat16.
inline void round_two(Floats (&x)[2]) {
    const Words pair = bit_cast<Words>(interleave_bf16((__m512)x[0], (__m512)x[1]));
    x[0] = bit_cast<Floats>(pair << 16);
    x[1] = bit_cast<Floats>(pair & 0xffff0000u);
}

// Sixteen hidden channels of a panel, of which `gate` and `up` are the rows: silu(gate) * up, rounded where the plain
// model rounds, packed for the second product.
template <int V>
void swiglu_panel(const uint32_t* x, int64_t pairs, WeightPanel& gate, WeightPanel& up, uint32_t* hidden) {
    alignas(LINE_BYTES) float gate_sums[16 * V * LANES], up_sums[16 * V * LANES];
    const auto prefetch = [&] {
        gate.prefetch.step();
        up.prefetch.step();
    };
    multiply_two_blocks<V>(x, pairs, gate.rows, up.rows, 2 * pairs, gate_sums, up_sums, prefetch);
    for (int n = 0; n < 16; n += 2)
        for (int v = 0; v < V; v++) {
            if (v % 2 == 0) prefetch();
            Floats gates[2], ups[2];
            for (int i = 0; i < 2; i++) {
                const int at = ((n + i) * V + v) * LANES;
                gates[i] = load(gate_sums + at);
                ups[i] = load(up_sums + at);
            }
            round_two(gates);
            round_two(ups);
            for (Floats& value : gates) value = fast_silu(value);
            round_two(gates);
            const __m512i pair = interleave_bf16((__m512)(gates[0] * ups[0]), (__m512)(gates[1] * ups[1]));
            _mm512_storeu_si512(hidden + (n / 2 * V + v) * LANES, pair);
        }
}

// Thirty-two outputs of the rows of a panel, as bfloat16. They are not read before all experts are done: past the
// caches.
template <int V>
void store_outputs(const float* sums, int64_t width, int64_t rows, bf16* out) {
    for (int v = 0; v < V; v++) {
        __m512i block[16];  // of a pair of outputs each, then of a row each
        for (int n = 0; n < 32; n += 2) {
            const float* from = sums + (n * V + v) * LANES;
            block[n / 2] = interleave_bf16(_mm512_load_ps(from), _mm512_load_ps(from + V * LANES));
        }
        transpose(block);
        for (int64_t m = 0; m < std::min<int64_t>(LANES, rows - v * LANES); m++)
            store_nontemporal(out + (v * LANES + m) * width, block[m]);
    }
}

// What a thread keeps from one task to the next: new pages would be cleared first, each time.
struct ExpertWorkspace {
    PackedRows x, hidden;
    std::vector<Line> scratch[2];  // two panels of int4 made bfloat16
    // Of 32 outputs, [outputs][16 * vectors of a panel]; of all where hidden channels come in parts.
    AlignedVector<float> sums;
};

// The rows of one task through the gated MLP of their expert. To be read from `run` down.
class ExpertPass {
   public:
    ExpertPass(const ExpertRows& e, const ExpertTask& task, ExpertWorkspace& workspace)
        : e_(e), expert_(task.expert), first_(task.first), rows_(task.rows), w_(workspace) {}

    // Hidden channels come in parts where all of them would not stay in the second cache, with AMX: then each part is
    // added to the sums of all outputs, which are kept.
    void run() {
        pack();
        at_once_ = hidden_at_once(rows_, e_.hidden, e_.down.first.kind);
        for (int64_t p = 0; p < w_.x.size(); p++) passes_ += (w_.x.vectors(p) + 1) / 2;
        const int64_t kept_outputs = has_parts() ? e_.width : 32;
        w_.sums.resize(std::max<size_t>(w_.sums.size(), round_up(rows_, LANES) * kept_outputs));
        for (int64_t begin = 0; begin < e_.hidden; begin += at_once_) {
            const int64_t end = std::min(begin + at_once_, e_.hidden);
            make_hidden(begin, end);
            make_outputs(begin, end);
        }
    }

   private:
    const ExpertRows& e_;
    const int64_t expert_, first_, rows_;
    ExpertWorkspace& w_;
    int64_t at_once_ = 0;
    int64_t passes_ = 0;  // how often a block of sixteen rows of a weight is gone through, two vectors at a time

    bool has_parts() const { return at_once_ < e_.hidden; }

    // Pack the rows, and meanwhile prefetch the first blocks of gate and up.
    void pack() {
        const int64_t steps = (rows_ + LANES - 1) / LANES * (e_.width / 32);
        BlockPrefetch gate(WeightBlock(e_.gate, expert_, 0), steps), up(WeightBlock(e_.up, expert_, 0), steps);
        const auto row_at = [&](int64_t row) { return e_.token_at(first_ + row); };
        pack_rows(rows_, e_.width, w_.x, row_at, [&] {
            gate.step();
            up.step();
        });
    }

    // The first product, of gate and up beside each other, and what their gated activation makes of it.
    void make_hidden(int64_t begin, int64_t end) {
        w_.hidden.resize(rows_, end - begin);
        // For each pair of vectors the steps of 32 channels, then those of the epilogue, one with each pair of hidden
        // channels.
        const int64_t steps = passes_ * (e_.width / 32 + LANES / 2);
        for (int64_t f = begin; f < end; f += PANEL) {
            const bool is_last = f + PANEL == end;
            const WeightBlock next_gate =
                is_last ? down_block(0, begin, end) : WeightBlock(e_.gate, expert_, f + PANEL);
            const WeightBlock next_up =
                is_last ? down_block(PANEL, begin, end) : WeightBlock(e_.up, expert_, f + PANEL);
            WeightPanel gate(e_.gate, expert_, f, next_gate, steps, w_.scratch[0]);
            WeightPanel up(e_.up, expert_, f, next_up, steps, w_.scratch[1]);
            for (int64_t p = 0; p < w_.x.size(); p++)
                with_constant<PackedRows::MOST_VECTORS>(w_.x.vectors(p), [&](auto vectors) {
                    uint32_t* to = w_.hidden.at(p) + (f - begin) / 2 * vectors.value * LANES;
                    swiglu_panel<vectors.value>(w_.x.at(p), w_.x.pairs, gate, up, to);
                });
        }
    }

    // The second product, over hidden channels `begin` to `end`; after the last of them the outputs are stored.
    void make_outputs(int64_t begin, int64_t end) {
        const int64_t steps = passes_ * ((end - begin) / 32 + 1);
        const auto next_block = [&](int64_t n) { return n < e_.width ? down_block(n, begin, end) : WeightBlock(); };
        for (int64_t n = 0; n < e_.width; n += 2 * PANEL) {
            WeightPanel one(e_.down, expert_, n, next_block(n + 2 * PANEL), steps, w_.scratch[0]);
            WeightPanel two(e_.down, expert_, n + PANEL, next_block(n + 3 * PANEL), steps, w_.scratch[1]);
            const auto prefetch = [&] {
                one.prefetch.step();
                two.prefetch.step();
            };
            for (int64_t p = 0; p < w_.x.size(); p++)
                with_constant<PackedRows::MOST_VECTORS>(w_.x.vectors(p), [&](auto vectors) {
                    constexpr int64_t V = vectors.value;
                    const int64_t row = w_.x.first[p] * LANES;
                    float* sums = w_.sums.data() + (has_parts() ? row * e_.width + n * V * LANES : 0);
                    multiply_two_blocks<V>(w_.hidden.at(p), w_.hidden.pairs, one.rows + begin, two.rows + begin,
                                           e_.hidden, sums, sums + PANEL * V * LANES, prefetch, begin > 0);
                    if (end < e_.hidden) return;
                    prefetch();
                    store_outputs<V>(sums, e_.width, rows_ - row, e_.out + (first_ + row) * e_.width + n);
                });
        }
    }

    WeightBlock down_block(int64_t first, int64_t begin, int64_t end) const {
        return WeightBlock(e_.down, expert_, first, begin, end);
    }
};

// The bfloat16 or int4 experts of all tasks.
inline bool run_float_experts(const ExpertRows& e, const std::vector<ExpertTask>& tasks, int threads) {
    parallel_for(static_cast<int64_t>(tasks.size()), threads, [&](int64_t task) {
        static thread_local ExpertWorkspace workspace;
        [[maybe_unused]] const MicrokernelState state;
        ExpertPass(e, tasks[task], workspace).run();
    });
    return true;
}

// Logits [tokens, experts] in float32. Whether the shape was within what the kernel does; nothing is written where it
// was not.
inline bool router_logits(const bf16* x, int64_t tokens, int64_t width, const bf16* weight, int64_t experts, float* out,
                          int threads) {
    if (width % 32) return false;
    // Experts up to a whole number of pairs of blocks: of those behind the last nothing is written.
    std::vector<bf16> padded;
    if (experts % (2 * LANES)) {
        padded.resize(round_up(experts, 2 * LANES) * width);
        std::copy(weight, weight + experts * width, padded.begin());
        weight = padded.data();
    }
    // One panel: each weight is read once for all its tokens.
    constexpr int64_t AT_ONCE = PackedRows::MOST_VECTORS * LANES;
    parallel_for((tokens + AT_ONCE - 1) / AT_ONCE, threads, [&](int64_t task) {
        static thread_local PackedRows packed;
        [[maybe_unused]] const MicrokernelState state;
        const int64_t first = task * AT_ONCE, count = std::min(AT_ONCE, tokens - first);
        pack_rows(count, width, packed, [&](int64_t row) { return x + (first + row) * width; }, [] {});
        with_constant<PackedRows::MOST_VECTORS>(packed.vectors(0), [&](auto vectors) {
            constexpr int V = vectors.value;
            for (int64_t expert = 0; expert < experts; expert += 2 * LANES) {
                const bf16 *one = weight + expert * width, *two = one + LANES * width;
                alignas(LINE_BYTES) float sums[2][LANES * V * LANES];
                multiply_two_blocks<V>(packed.at(0), packed.pairs, one, two, width, sums[0], sums[1], [] {});
                for (int half = 0; half < 2; half++) {
                    const int64_t to = expert + half * LANES, left = std::clamp<int64_t>(experts - to, 0, LANES);
                    for (int64_t v = 0; v < V; v++) {
                        __m512i block[16];  // of an expert each, then of a token each
                        for (int n = 0; n < 16; n++) block[n] = _mm512_loadu_si512(sums[half] + (n * V + v) * LANES);
                        transpose(block);
                        for (int64_t m = 0; m < std::min<int64_t>(LANES, count - v * LANES); m++)
                            _mm512_mask_storeu_epi32(out + (first + v * LANES + m) * experts + to,
                                                     static_cast<__mmask16>((1 << left) - 1), block[m]);
                    }
                }
            }
        });
    });
    return true;
}

}  // namespace vl2
