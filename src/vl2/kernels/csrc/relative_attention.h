// Attention among the patches of each window of a map, with decomposed relative positions: SAM's.
//
// In: rows of queries, keys and values of all heads for each patch of some views, as a product leaves them, and the
// learned vectors of the distances (RelativeAttention, held the same in vl2/kernels/prefill_ops.py). Out: bfloat16 rows
// of all heads, and whether it was done: there are kernels for AVX-512 and AMX, elsewhere PyTorch's attention is used.
// Callers are kernels.cpp and sam.h. To the score of a query and a key are added the products of the query with the
// vector of their distance in rows and with that in columns. No matrix of scores or biases is made: a thread holds
// those of a few queries. All sums are float32. A query's result depends on the patches of its window alone, neither
// on other views nor on the number of threads.
#pragma once
#include <algorithm>
#include <vector>

#include "prefill_attention.h"

namespace vl2 {

// Held the same in Python, as a ctypes structure.
struct RelativeAttention {
    const bf16* qkv;      // [views, side, side] rows [queries | keys | values], `qkv_row` numbers from one to the next
    int64_t qkv_row;
    const bf16* outside;  // what such a row is at a place of a window beyond the right and bottom edges
    bf16* out;            // [views, side, side] rows of heads * channels
    int64_t views, side, window, heads, channels;
    const bf16 *along_h, *along_w;  // [2 window - 1, channels], by the query's place minus the key's, the lowest first
    double scale;                   // of the products of queries and keys

    int64_t windows_per_side() const { return (side + window - 1) / window; }
};

// One head of one window.
struct Window {
    const RelativeAttention& a;
    int64_t view, top, left, head;

    int64_t keys() const { return a.window * a.window; }
    // Queries are the patches inside the map, keys are all places of the window.
    int64_t rows() const { return std::min(a.window, a.side - top); }
    int64_t columns() const { return std::min(a.window, a.side - left); }
    int64_t queries() const { return rows() * columns(); }

    int64_t patch(int64_t y, int64_t x) const { return (view * a.side + top + y) * a.side + left + x; }
    int64_t num_distances() const { return 2 * a.window - 1; }
    // The values of a place lie so far behind its key, and its key behind its query.
    int64_t part() const { return a.heads * a.channels; }

    // The queries of all places, in the order of the keys.
    void list_places(std::vector<const bf16*>& places) const {
        places.clear();
        for (int64_t y = 0; y < a.window; y++)
            for (int64_t x = 0; x < a.window; x++) {
                const bool is_inside = top + y < a.side && left + x < a.side;
                places.push_back((is_inside ? a.qkv + patch(y, x) * a.qkv_row : a.outside) + head * a.channels);
            }
    }
};

// A query of a window: where it is, and where its result goes. The vectors of its distances to the places of a row of
// the window, the first place's first, are those of a reversed table from `first_h` on; so `first_w` for a column.
struct Query {
    const bf16* from;
    bf16* out;
    int64_t first_h, first_w;

    Query() = default;
    Query(const Window& window, int64_t q) {
        const RelativeAttention& a = window.a;
        const int64_t y = q / window.columns(), x = q % window.columns(), patch = window.patch(y, x);
        from = a.qkv + patch * a.qkv_row + window.head * a.channels;
        out = a.out + patch * window.part() + window.head * a.channels;
        first_h = a.window - 1 - y;
        first_w = a.window - 1 - x;
    }
};

// Channels of a head: the sums of more would not stay in the first cache.
constexpr int64_t MOST_RELATIVE_CHANNELS = 128;

}  // namespace vl2

#if defined(VL2_AMX)
#include "relative_attention_amx.h"
#elif defined(VL2_AVX512)
#include "relative_attention_avx512.h"
#else

namespace vl2 {

inline void attend_window(const Window&, int64_t, int64_t) {}  // never called

}  // namespace vl2
#endif

namespace vl2 {

#if defined(VL2_AVX512)
constexpr bool HAS_WINDOW_ATTENTION = true;
#else
constexpr bool HAS_WINDOW_ATTENTION = false;
#endif

// Whether the shape was within what the kernel does; nothing is written where it was not.
inline bool attend_windows(const RelativeAttention& a, int threads) {
    if (!HAS_WINDOW_ATTENTION || a.channels % 2 || a.window % 2 || a.channels > MOST_RELATIVE_CHANNELS) return false;
    // Each task packs the keys of its window, so a window is divided only where there are too few for all threads.
    constexpr int64_t FEWEST_QUERIES = 256, TASKS_OF_A_THREAD = 4;
    const int64_t per_side = a.windows_per_side(), windows = a.views * per_side * per_side;
    const int64_t wanted = (TASKS_OF_A_THREAD * threads + windows * a.heads - 1) / (windows * a.heads);
    const int64_t parts = std::max<int64_t>(1, std::min(wanted, a.window * a.window / FEWEST_QUERIES));
    parallel_for(windows * parts * a.heads, threads, [&](int64_t task) {
        const int64_t head = task % a.heads, part = task / a.heads % parts, window = task / a.heads / parts;
        const int64_t row = window / per_side % per_side, column = window % per_side;
        const Window place{a, window / per_side / per_side, row * a.window, column * a.window, head};
        attend_window(place, part * place.queries() / parts, (part + 1) * place.queries() / parts);
    });
    return true;
}

}  // namespace vl2
