// The gated MLPs of a prefill: rows of tokens through the experts that they visit, or through one MLP for all.
//
// Sixteen rows lie beside one another in pairs of channels, as the bfloat16 dot product takes them, and each pair of a
// weight is spread over them as it comes from memory. So weights are never packed, each is read once for up to 256 rows
// (and its codes made bfloat16 once), and what leaves the gate already lies as the second product wants it. A row's
// result depends on that row alone.
#pragma once
#include <algorithm>
#include <vector>

#include "amx.h"
#include "blocks.h"
#include "experts_int8.h"
#include "lines.h"
#include "prefill.h"

namespace vl2 {

// Held the same in Python, as a ctypes structure.
struct ExpertRows {
    const bf16* x;          // [tokens, width]
    int64_t tokens;
    const int64_t* token;   // [rows], sorted by expert: the token of each; null: the tokens in their order
    const int64_t* counts;  // [experts], rows of each
    int64_t experts, width, hidden;
    Stack gate, up, down;  // [hidden, width] twice and [width, hidden]
    bf16* out;              // [rows, width]

    int64_t token_of(int64_t row) const { return token ? token[row] : row; }
    const bf16* token_at(int64_t row) const { return x + token_of(row) * width; }
};

#if defined(__AVX512BF16__) && defined(__AVX512BW__)

constexpr int64_t MOST_VECTORS = 16;  // of sixteen rows each, at once

// Rows of one expert, in tiles of up to six vectors: [tile][pair of channels][16 * vectors of the tile].
struct Tiles {
    std::vector<int64_t> first;  // vector of each tile, and the end
    std::vector<Line> lines;
    int64_t pairs = 0;

    void resize(int64_t rows, int64_t channels) {
        const int64_t vectors = (rows + LANES - 1) / LANES, tiles = (vectors + 5) / 6;
        first.resize(tiles + 1);
        for (int64_t t = 0; t <= tiles; t++) first[t] = (t * vectors + tiles - 1) / tiles;
        pairs = channels / 2;
        if (static_cast<int64_t>(lines.size()) < vectors * pairs) lines.resize(vectors * pairs);
    }
    int64_t size() const { return static_cast<int64_t>(first.size()) - 1; }
    int64_t vectors(int64_t tile) const { return first[tile + 1] - first[tile]; }
    uint32_t* at(int64_t tile) { return lines[first[tile] * pairs].words; }
};

// `beside` is called with every sixteen rows and 32 channels.
template <class Beside>
void pack_rows(const ExpertRows& e, int64_t first, int64_t rows, Tiles& tiles, const Beside& beside) {
    tiles.resize(rows, e.width);
    for (int64_t tile = 0; tile < tiles.size(); tile++) {
        const int64_t stride = tiles.vectors(tile) * LANES;
        for (int64_t v = 0; v < tiles.vectors(tile); v++) {
            const int64_t row = (tiles.first[tile] + v) * LANES;
            uint32_t* to = tiles.at(tile) + v * LANES;
            for (int64_t pair = 0; pair < tiles.pairs; pair += 16) {
                beside();
                __m512i block[16];
                for (int m = 0; m < 16; m++)
                    block[m] = row + m < rows ? _mm512_loadu_si512(e.token_at(first + row + m) + 2 * pair)
                                              : _mm512_setzero_si512();
                transpose(block);
                for (int c = 0; c < 16; c++) _mm512_storeu_si512(to + (pair + c) * stride, block[c]);
            }
        }
    }
}

// Outputs of N rows of a weight for the 16 * V rows of a tile: sums [N][16 * V]. Not inlined: beside other code the
// compiler would not keep the sums in registers.
template <int V, int N>
__attribute__((noinline)) void multiply_tile(const uint32_t* x, int64_t pairs, const bf16* const* weight, float* sums) {
    __m512 acc[N][V];
    for (int n = 0; n < N; n++)
        for (int v = 0; v < V; v++) acc[n][v] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < pairs; pair++, x += V * LANES) {
        __m512bh rows[V];
        for (int v = 0; v < V; v++) rows[v] = (__m512bh)_mm512_loadu_si512(x + v * LANES);
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) {
            const __m512bh spread = pair_of(weight[n] + 2 * pair);
            for (int v = 0; v < V; v++) acc[n][v] = _mm512_dpbf16_ps(acc[n][v], rows[v], spread);
        }
    }
    for (int n = 0; n < N; n++)
        for (int v = 0; v < V; v++) _mm512_storeu_ps(sums + (n * V + v) * LANES, acc[n][v]);
}

// Where sixteen rows of an expert's weight lie, in whatever form, or of bfloat16 some of their channels.
struct Block {
    const uint8_t* codes = nullptr;  // null: none
    int64_t bytes = 0, row = 0, part = 0;  // of all channels; of a row, and of the channels that are meant, of bfloat16

    Block() = default;
    Block(const Stack& stack, int64_t expert, int64_t first) : Block(stack, expert, first, 0, stack.first.inputs) {}
    Block(const Stack& stack, int64_t expert, int64_t first, int64_t begin, int64_t end) {
        const int64_t inputs = stack.first.inputs;
        const bool is_held = stack.first.kind == BF16;
        bytes = is_held ? 2 * PANEL * inputs : inputs / GROUP * BLOCK_BYTES;
        codes = stack.at(expert).codes + first / PANEL * bytes + (is_held ? 2 * begin : 0);
        row = is_held ? 2 * inputs : 0;
        part = is_held ? 2 * (end - begin) : 0;
    }
};

#if defined(__AMX_BF16__)
// What comes next is asked for evenly over so many steps.
inline StreamPrefetch prefetch_of(const Block& next, int64_t steps) {
    constexpr int64_t LINE = LINE_BYTES;
    if (!next.codes) return {};
    if (next.part < next.row) return {next.codes, PANEL, next.row, next.part / LINE * PANEL, steps};
    return {next.codes, next.bytes / LINE, steps};
}
#endif

// Sixteen rows of an expert's weight, and those that come next, which are asked for between the products of these.
struct Sixteen {
    const bf16* rows;
#if defined(__AMX_BF16__)
    StreamPrefetch prefetch;

    void ask() { prefetch.step(); }
#else
    void ask() {}
#endif
};

// How often a block of sixteen rows is gone through, two vectors at a time.
inline int64_t turns_of(const Tiles& tiles) {
    int64_t turns = 0;
    for (int64_t t = 0; t < tiles.size(); t++) turns += (tiles.vectors(t) + 1) / 2;
    return turns;
}

// Sixteen rows from a multiple of sixteen on: where they lie, or int4 made bfloat16 in `room`. With tile registers the `next`
// are asked for, evenly over so many `steps` of products with these and of their results.
inline Sixteen sixteen_rows(const Stack& stack, int64_t expert, int64_t first, [[maybe_unused]] const Block& next,
                            [[maybe_unused]] int64_t steps, std::vector<Line>& room) {
    const Block block(stack, expert, first);
    const int64_t inputs = stack.first.inputs, groups = inputs / GROUP;
    Sixteen sixteen{reinterpret_cast<const bf16*>(block.codes)};
    if (stack.first.kind != BF16) {
        room.resize(std::max<size_t>(room.size(), 16 * inputs / GROUP));
        bf16* rows = reinterpret_cast<bf16*>(room.data());
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(stack.at(expert).scales) + first * groups;
        unpack_panel(block.codes, scales, groups, rows);
        sixteen.rows = rows;
    }
#if defined(__AMX_BF16__)
    sixteen.prefetch = prefetch_of(next, steps);
#endif
    return sixteen;
}

// Sixteen outputs each of two weights for the 16 * V rows of a tile: sums [16][16 * V] of each; `row` is from one row of a weight
// to the next. With tile registers `beside` is called in between, with every 32 channels and two vectors, and the sums are added
// to those before where there are more.
template <int V, class Beside>
void multiply_two(const uint32_t* x, int64_t pairs, const bf16* one, const bf16* two, int64_t row, float* sums_one,
                  float* sums_two, [[maybe_unused]] const Beside& beside, [[maybe_unused]] bool is_more = false) {
#if defined(__AMX_BF16__)
    multiply_all_blocks<V>(x, one, two, row, 2 * pairs, sums_one, sums_two, beside, is_more);
#else
    constexpr int N = V > 3 ? 4 : 8, HALF = N / 2;
    for (int first = 0; first < 16; first += HALF) {
        const bf16* weight[N];
        for (int n = 0; n < HALF; n++) {
            weight[n] = one + (first + n) * row;
            weight[HALF + n] = two + (first + n) * row;
        }
        alignas(LINE_BYTES) float some[N * V * LANES];
        multiply_tile<V, N>(x, pairs, weight, some);
        std::memcpy(sums_one + first * V * LANES, some, sizeof some / 2);
        std::memcpy(sums_two + first * V * LANES, some + HALF * V * LANES, sizeof some / 2);
    }
#endif
}

// Two vectors, each rounded to bfloat16.
inline void round_two(Floats (&x)[2]) {
    const Words pair = bits<Words>(in_pairs((__m512)x[0], (__m512)x[1]));
    x[0] = bits<Floats>(pair << 16);
    x[1] = bits<Floats>(pair & 0xffff0000u);
}

// Sixteen hidden channels of a tile, of which `gate` and `up` are the rows: silu(gate) * up, rounded where the plain model
// rounds.
template <int V>
void gate_tile(const uint32_t* x, int64_t pairs, Sixteen& gate, Sixteen& up, uint32_t* hidden) {
    alignas(LINE_BYTES) float opens[16 * V * LANES], sums[16 * V * LANES];
    const auto ask = [&] {
        gate.ask();
        up.ask();
    };
    multiply_two<V>(x, pairs, gate.rows, up.rows, 2 * pairs, opens, sums, ask);
    for (int n = 0; n < 16; n += 2)
        for (int v = 0; v < V; v++) {
            if (v % 2 == 0) ask();
            Floats opened[2], raised[2];
            for (int i = 0; i < 2; i++) {
                const int at = ((n + i) * V + v) * LANES;
                opened[i] = load(opens + at);
                raised[i] = load(sums + at);
            }
            round_two(opened);
            round_two(raised);
            for (Floats& open : opened) open = near_silu(open);
            round_two(opened);
            const __m512i pair = in_pairs((__m512)(opened[0] * raised[0]), (__m512)(opened[1] * raised[1]));
            _mm512_storeu_si512(hidden + (n / 2 * V + v) * LANES, pair);
        }
}

// Thirty-two outputs of the rows of a tile, as bfloat16.
template <int V>
void store_outputs(const float* sums, int64_t width, int64_t rows, bf16* out) {
    for (int v = 0; v < V; v++) {
        __m512i block[16];  // of a pair of outputs each, then of a row each
        for (int n = 0; n < 32; n += 2) {
            const float* from = sums + (n * V + v) * LANES;
            block[n / 2] = in_pairs(_mm512_load_ps(from), _mm512_load_ps(from + V * LANES));
        }
        transpose(block);
        for (int64_t m = 0; m < std::min<int64_t>(LANES, rows - v * LANES); m++)
            store_past_caches(out + (v * LANES + m) * width, block[m]);
    }
}

template <class Run>
inline void with_vectors(int64_t vectors, const Run& run) {
    switch (vectors) {
        case 1: run(std::integral_constant<int, 1>()); break;
        case 2: run(std::integral_constant<int, 2>()); break;
        case 3: run(std::integral_constant<int, 3>()); break;
        case 4: run(std::integral_constant<int, 4>()); break;
        case 5: run(std::integral_constant<int, 5>()); break;
        default: run(std::integral_constant<int, 6>()); break;
    }
}

constexpr int64_t HIDDEN_BYTES = 1 << 19;  // hidden channels at a time, which the second cache holds beside all else

// How many hidden channels of a task are made before outputs are added up over them: all, or a part where they are many.
inline int64_t hidden_at_once(const ExpertRows& e, int64_t rows) {
#if defined(__AMX_BF16__)
    const int64_t parts = (round_up(rows, LANES) * e.hidden * 2 + HIDDEN_BYTES - 1) / HIDDEN_BYTES;
    if (e.down.first.kind == BF16) return round_up((e.hidden + parts - 1) / parts, 32);
#endif
    return e.hidden;
}

// Rows of one expert, from a first one on.
inline void run_expert(const ExpertRows& e, int64_t expert, int64_t first, int64_t rows) {
    static thread_local Tiles tiles, hidden;
    static thread_local std::vector<Line> room[2];
    static thread_local AlignedVector<float> kept_sums;  // [tile][outputs][16 * vectors]
#if defined(__AMX_BF16__)
    const TileRegisters registers;
#endif
#if defined(__AMX_BF16__)
    const int64_t packs = (rows + LANES - 1) / LANES * (e.width / 32);
    StreamPrefetch gate_prefetch = prefetch_of(Block(e.gate, expert, 0), packs);
    StreamPrefetch up_prefetch = prefetch_of(Block(e.up, expert, 0), packs);
    pack_rows(e, first, rows, tiles, [&] {
        gate_prefetch.step();
        up_prefetch.step();
    });
#else
    pack_rows(e, first, rows, tiles, [] {});
#endif
    const int64_t at_once = hidden_at_once(e, rows), turns = turns_of(tiles);
    kept_sums.resize(std::max<size_t>(kept_sums.size(), round_up(rows, LANES) * (at_once < e.hidden ? e.width : 32)));
    for (int64_t begin = 0; begin < e.hidden; begin += at_once) {
        const int64_t end = std::min(begin + at_once, e.hidden);
        hidden.resize(rows, end - begin);
        // For each pair of vectors those of 32 channels, and of a pair of hidden channels or of the rows.
        const int64_t gate_steps = turns * (e.width / 32 + LANES / 2), down_steps = turns * ((end - begin) / 32 + 1);
        const auto down_block = [&](int64_t n) { return Block(e.down, expert, n, begin, end); };
        for (int64_t f = begin; f < end; f += 16) {
            const bool is_last = f + 16 == end;
            const Block after_gate = is_last ? down_block(0) : Block(e.gate, expert, f + 16);
            const Block after_up = is_last ? down_block(16) : Block(e.up, expert, f + 16);
            Sixteen gate = sixteen_rows(e.gate, expert, f, after_gate, gate_steps, room[0]);
            Sixteen up = sixteen_rows(e.up, expert, f, after_up, gate_steps, room[1]);
            for (int64_t t = 0; t < tiles.size(); t++)
                with_vectors(tiles.vectors(t), [&](auto vectors) {
                    uint32_t* to = hidden.at(t) + (f - begin) / 2 * vectors.value * LANES;
                    gate_tile<vectors.value>(tiles.at(t), tiles.pairs, gate, up, to);
                });
        }
        for (int64_t n = 0; n < e.width; n += 32) {
            const bool is_last = n + 32 == e.width;
            Sixteen one = sixteen_rows(e.down, expert, n, is_last ? Block() : down_block(n + 32), down_steps, room[0]);
            Sixteen two = sixteen_rows(e.down, expert, n + 16, is_last ? Block() : down_block(n + 48), down_steps, room[1]);
            for (int64_t t = 0; t < tiles.size(); t++)
                with_vectors(tiles.vectors(t), [&](auto vectors) {
                    constexpr int64_t V = vectors.value;
                    const int64_t row = tiles.first[t] * LANES;
                    // The sums of all outputs are kept where more hidden channels follow.
                    float* sums = kept_sums.data() + (at_once < e.hidden ? row * e.width + n * V * LANES : 0);
                    multiply_two<V>(hidden.at(t), hidden.pairs, one.rows + begin, two.rows + begin, e.hidden, sums,
                                    sums + 16 * V * LANES, [&] { one.ask(), two.ask(); }, begin > 0);
                    if (end < e.hidden) return;
                    one.ask();
                    two.ask();
                    store_outputs<V>(sums, e.width, rows - row, e.out + (first + row) * e.width + n);
                });
        }
    }
}

// Whether the shape was within what the kernel does; nothing is written where it was not.
inline bool run_experts(const ExpertRows& e, int threads) {
    if (e.width % 32 || e.hidden % 32) return false;
    struct Task {
        int64_t expert, first, rows;
    };
    std::vector<Task> tasks;
    int64_t used = 0, products = 0;
    for (int64_t expert = 0, first = 0; expert < e.experts; first += e.counts[expert++]) {
        const int64_t vectors = (e.counts[expert] + LANES - 1) / LANES;
        used += e.counts[expert] > 0;
        products += e.counts[expert] * 3 * e.width * e.hidden;
        int64_t parts = (vectors + MOST_VECTORS - 1) / MOST_VECTORS;
        // One MLP for all rows gives every thread the same.
        if (e.experts == 1) parts = std::min(vectors, round_up(parts, threads));
        for (int64_t part = 0; part < parts; part++) {
            const int64_t row = part * vectors / parts * LANES, end = (part + 1) * vectors / parts * LANES;
            tasks.push_back({expert, first + row, std::min(end, e.counts[expert]) - row});
        }
    }
    threads = threads_for(threads, used * e.hidden * (e.gate.first.bytes_per_output() + e.up.first.bytes_per_output()), products);
    // The long ones first, for all threads to be done at the same time.
    std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.rows > b.rows; });
    const auto run_all = [&](const auto& run) {
        run_team(threads, [&](Team& team, int) {
            int phase = 0;
            team.each(static_cast<int64_t>(tasks.size()), phase, [&](int64_t task) { run(tasks[task]); });
        });
    };
#if defined(__AMX_INT8__)
    if (e.gate.first.kind == INT8) {
        const Int8Tokens tokens(e.x, e.tokens, e.width, threads);
        run_all([&](const Task& t) {
            const Int8Expert expert{e.gate.at(t.expert), e.up.at(t.expert), e.down.at(t.expert)};
            expert.run(tokens, t.rows, [&](int64_t row) { return e.token_of(t.first + row); }, e.out + t.first * e.width);
        });
        return true;
    }
#else
    if (e.gate.first.kind == INT8) return false;
#endif
    run_all([&](const Task& t) { run_expert(e, t.expert, t.first, t.rows); });
    return true;
}

#else

inline bool run_experts(const ExpertRows&, int) { return false; }

#endif

}  // namespace vl2
