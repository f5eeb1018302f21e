// The gated MLPs of a prefill: rows of tokens through the experts that they visit, or through one MLP for all.
//
// Sixteen rows lie beside one another in pairs of channels, as the bfloat16 dot product takes them, and each pair of a
// weight is spread over them as it comes from memory. So weights are never packed, each is read once for up to 192 rows
// (and its codes made bfloat16 once), and what leaves the gate already lies as the second product wants it. A row's
// result depends on that row alone.
#pragma once
#include <algorithm>
#include <vector>

#include "amx.h"
#include "blocks.h"
#include "experts_eight_bits.h"
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

constexpr int64_t MOST_VECTORS = 12;  // of sixteen rows each, at once

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

inline void pack_rows(const ExpertRows& e, int64_t first, int64_t rows, Tiles& tiles) {
    tiles.resize(rows, e.width);
    for (int64_t tile = 0; tile < tiles.size(); tile++) {
        const int64_t stride = tiles.vectors(tile) * LANES;
        for (int64_t v = 0; v < tiles.vectors(tile); v++) {
            const int64_t row = (tiles.first[tile] + v) * LANES;
            uint32_t* to = tiles.at(tile) + v * LANES;
            for (int64_t pair = 0; pair < tiles.pairs; pair += 16) {
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

// Sixteen rows of an expert's weight, and those that come next, which are asked for between the products of these.
struct Sixteen {
    const bf16* rows;
#if defined(__AMX_BF16__)
    AheadInStreams ahead;
#endif
};

// How often a block of sixteen rows is gone through, two vectors at a time.
inline int64_t turns_of(const Tiles& tiles) {
    int64_t turns = 0;
    for (int64_t t = 0; t < tiles.size(); t++) turns += (tiles.vectors(t) + 1) / 2;
    return turns;
}

// Sixteen rows from a multiple of sixteen on: where they lie, or int4 made bfloat16 in `room`. With tile registers those
// `distance` rows further are asked for, evenly over so many `turns` of products with these.
inline Sixteen sixteen_rows(const Stack& stack, int64_t expert, int64_t first, int64_t distance, int64_t turns,
                            std::vector<Line>& room) {
    const Matrix w = stack.at(expert);
    const int64_t inputs = w.inputs, groups = inputs / GROUP;
    const bool is_held = w.kind == BF16;
    const int64_t bytes = is_held ? 2 * PANEL * inputs : groups * BLOCK_BYTES;
    const uint8_t* from = w.codes + first / PANEL * bytes;
    Sixteen sixteen{reinterpret_cast<const bf16*>(from)};
    if (!is_held) {
        room.resize(std::max<size_t>(room.size(), 16 * inputs / GROUP));
        bf16* rows = reinterpret_cast<bf16*>(room.data());
        unpack_panel(from, reinterpret_cast<const uint16_t*>(w.scales) + first * groups, groups, rows);
        sixteen.rows = rows;
    }
#if defined(__AMX_BF16__)
    const int64_t lines = bytes / static_cast<int64_t>(LINE_BYTES), steps = turns * (inputs / 32);
    sixteen.ahead = AheadInStreams(from + distance / PANEL * bytes, lines, steps);
#endif
    return sixteen;
}

// Sums of two blocks of sixteen outputs for the vectors of a tile, [16][16 * vectors] each, of which something is made piece by
// piece, while the next are added up.
struct Sums {
    alignas(LINE_BYTES) float one[16 * 6 * LANES], two[16 * 6 * LANES];
};

// Of sixteen hidden channels of a tile's rows: silu(gate) * up, rounded where the plain model rounds.
class GateSums : public Sums {
   public:
    void begin(int64_t vectors, uint32_t* hidden) {
        vectors_ = vectors;
        hidden_ = hidden;
        n_ = v_ = 0;
    }
    int64_t pieces() const { return (LANES - n_) / 2 * vectors_ - v_; }

    // A pair of channels of a vector.
    void piece() {
        Floats opens[2], raised[2];
        for (int i = 0; i < 2; i++) {
            const int64_t at = ((n_ + i) * vectors_ + v_) * LANES;
            opens[i] = load(one + at);
            raised[i] = load(two + at);
        }
        round_two(opens);
        round_two(raised);
        for (Floats& open : opens) open = silu(open);
        round_two(opens);
        const __m512i pair = in_pairs((__m512)(opens[0] * raised[0]), (__m512)(opens[1] * raised[1]));
        _mm512_storeu_si512(hidden_ + (n_ / 2 * vectors_ + v_) * LANES, pair);
        if (++v_ < vectors_) return;
        v_ = 0;
        n_ += 2;
    }

   private:
    int64_t vectors_ = 0, n_ = LANES, v_ = 0;  // n_ and v_: of the next piece
    uint32_t* hidden_ = nullptr;

    static void round_two(Floats (&x)[2]) {
        const Words pair = bits<Words>(in_pairs((__m512)x[0], (__m512)x[1]));
        x[0] = bits<Floats>(pair << 16);
        x[1] = bits<Floats>(pair & 0xffff0000u);
    }
};

// Of thirty-two outputs of a tile's rows: those rows, as bfloat16.
class DownSums : public Sums {
   public:
    void begin(int64_t vectors, int64_t width, int64_t rows, bf16* out) {
        vectors_ = vectors;
        width_ = width;
        rows_ = rows;
        out_ = out;
        v_ = 0;
    }
    int64_t pieces() const { return vectors_ - v_; }

    // A vector.
    void piece() {
        __m512i block[16];  // of a pair of outputs each, then of a row each
        for (int half = 0; half < 2; half++)
            for (int n = 0; n < 16; n += 2) {
                const float* from = (half ? two : one) + (n * vectors_ + v_) * LANES;
                block[8 * half + n / 2] = in_pairs(_mm512_load_ps(from), _mm512_load_ps(from + vectors_ * LANES));
            }
        transpose(block);
        const int64_t first = v_++ * LANES;
        for (int64_t m = 0; m < std::min<int64_t>(LANES, rows_ - first); m++)
            store_past_caches(out_ + (first + m) * width_, block[m]);
    }

   private:
    int64_t vectors_ = 0, width_ = 0, rows_ = 0, v_ = 0;  // v_: of the next piece
    bf16* out_ = nullptr;
};

// The pieces that are left of some sums, spread over so many steps of other products.
template <class Of>
class Spread {
   public:
    Spread(Of& sums, int64_t steps) : sums_(sums), left_(sums.pieces()), gap_(left_ ? std::max<int64_t>(steps / left_, 1) : 0) {}

    void step() {
        if (!left_ || ++since_ < gap_) return;
        since_ = 0;
        left_--;
        sums_.piece();
    }
    void finish() {
        for (; left_; left_--) sums_.piece();
    }

   private:
    Of& sums_;
    int64_t left_, gap_, since_ = 0;
};

// Sixteen outputs each of two weights for the 16 * V rows of a tile: sums [16][16 * V] of each. With tile registers `beside` is
// called in between, with every 32 channels and two vectors.
template <int V, class Beside>
void multiply_two(const uint32_t* x, int64_t pairs, const bf16* one, const bf16* two, float* sums_one, float* sums_two,
                  [[maybe_unused]] const Beside& beside) {
#if defined(__AMX_BF16__)
    multiply_all_blocks<V>(x, one, two, 2 * pairs, sums_one, sums_two, beside);
#else
    constexpr int N = V > 3 ? 4 : 8, HALF = N / 2;
    for (int first = 0; first < 16; first += HALF) {
        const bf16* weight[N];
        for (int n = 0; n < HALF; n++) {
            weight[n] = one + (first + n) * 2 * pairs;
            weight[HALF + n] = two + (first + n) * 2 * pairs;
        }
        alignas(LINE_BYTES) float some[N * V * LANES];
        multiply_tile<V, N>(x, pairs, weight, some);
        std::memcpy(sums_one + first * V * LANES, some, sizeof some / 2);
        std::memcpy(sums_two + first * V * LANES, some + HALF * V * LANES, sizeof some / 2);
    }
#endif
}

// The same of rows of an expert's weights; in between, what comes next is asked for, and what the sums before are for is made.
template <int V, class Of>
void multiply_sixteen(const uint32_t* x, int64_t pairs, Sixteen& one, Sixteen& two, Of& sums, Of& before) {
    Spread<Of> left(before, pairs / 16 * ((V + 1) / 2));
    multiply_two<V>(x, pairs, one.rows, two.rows, sums.one, sums.two, [&] {
#if defined(__AMX_BF16__)
        one.ahead.step();
        two.ahead.step();
#endif
        left.step();
    });
    left.finish();
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

// Rows of one expert, from a first one on.
inline void run_expert(const ExpertRows& e, int64_t expert, int64_t first, int64_t rows) {
    static thread_local Tiles tiles, hidden;
    static thread_local std::vector<Line> room[2];
#if defined(__AMX_BF16__)
    const TileRegisters registers;
#endif
    pack_rows(e, first, rows, tiles);
    hidden.resize(rows, e.hidden);
    const int64_t turns = turns_of(tiles);
    GateSums gates[2], *these = gates, *before = gates + 1;
    for (int64_t f = 0; f < e.hidden; f += 16) {
        Sixteen gate = sixteen_rows(e.gate, expert, f, 16, turns, room[0]);
        Sixteen up = sixteen_rows(e.up, expert, f, 16, turns, room[1]);
        for (int64_t t = 0; t < tiles.size(); t++)
            with_vectors(tiles.vectors(t), [&](auto vectors) {
                multiply_sixteen<vectors.value>(tiles.at(t), tiles.pairs, gate, up, *these, *before);
                these->begin(vectors.value, hidden.at(t) + f / 2 * vectors.value * LANES);
                std::swap(these, before);
            });
    }
    Spread<GateSums>(*before, 1).finish();
    DownSums downs[2], *sums = downs, *last = downs + 1;
    for (int64_t n = 0; n < e.width; n += 32) {
        Sixteen one = sixteen_rows(e.down, expert, n, 32, turns, room[0]);
        Sixteen two = sixteen_rows(e.down, expert, n + 16, 32, turns, room[1]);
        for (int64_t t = 0; t < tiles.size(); t++) {
            const int64_t row = tiles.first[t] * LANES;
            with_vectors(tiles.vectors(t), [&](auto vectors) {
                multiply_sixteen<vectors.value>(hidden.at(t), hidden.pairs, one, two, *sums, *last);
                sums->begin(vectors.value, e.width, rows - row, e.out + (first + row) * e.width + n);
                std::swap(sums, last);
            });
        }
    }
    Spread<DownSums>(*last, 1).finish();
}

// Whether the shape was within what the kernel does; nothing is written where it was not.
inline bool run_experts(const ExpertRows& e, int threads) {
    if (e.width % 32 || e.hidden % 32) return false;
    struct Task {
        int64_t expert, first, rows;
    };
    std::vector<Task> tasks;
    for (int64_t expert = 0, first = 0; expert < e.experts; first += e.counts[expert++]) {
        const int64_t vectors = (e.counts[expert] + LANES - 1) / LANES;
        int64_t parts = (vectors + MOST_VECTORS - 1) / MOST_VECTORS;
        // One MLP for all rows gives every thread the same.
        if (e.experts == 1) parts = std::min(vectors, round_up(parts, threads));
        for (int64_t part = 0; part < parts; part++) {
            const int64_t row = part * vectors / parts * LANES, end = (part + 1) * vectors / parts * LANES;
            tasks.push_back({expert, first + row, std::min(end, e.counts[expert]) - row});
        }
    }
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
        const TokensInEightBits tokens(e.x, e.tokens, e.width, threads);
        run_all([&](const Task& t) {
            const ExpertInEightBits expert{e.gate.at(t.expert), e.up.at(t.expert), e.down.at(t.expert)};
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
