// Attention among the patches of each window of a map, with decomposed relative positions: SAM's.
//
// In: rows of queries, keys and values of all heads for each patch of some views, as a product leaves them, and the
// learned vectors of the distances (RelativeAttention, held the same in vl2/kernels/prefill_ops.py). Out: bfloat16 rows
// of all heads, and whether it was done: there are kernels for AVX-512 and AMX, elsewhere PyTorch's attention is used.
// Callers are kernels.cpp and sam.h. To the score of a query and a key are added the products of the query with the
// vector of their distance in rows and with that in columns. No matrix of scores or biases is made: a thread holds those
// of a few queries. All sums are float32. A query's result depends on the patches of its window alone, neither on other
// views nor on the number of threads.
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
    // The channels of a place's query, key or value: part 0, 1 or 2.
    const bf16* at(int64_t part, int64_t y, int64_t x) const {
        const bool is_inside = top + y < a.side && left + x < a.side;
        return (is_inside ? a.qkv + patch(y, x) * a.qkv_row : a.outside) + (part * a.heads + head) * a.channels;
    }
    const bf16* key(int64_t k) const { return at(1, k / a.window, k % a.window); }
    const bf16* value(int64_t k) const { return at(2, k / a.window, k % a.window); }
    const bf16* query(int64_t q) const { return at(0, q / columns(), q % columns()); }
    bf16* out(int64_t q) const {
        return a.out + (patch(q / columns(), q % columns()) * a.heads + head) * a.channels;
    }

    // The vectors of a query's distances to the places of a row of the window, the first place's first, are those of a
    // reversed table from here on; so for a column.
    int64_t first_distance_h(int64_t q) const { return a.window - 1 - q / columns(); }
    int64_t first_distance_w(int64_t q) const { return a.window - 1 - q % columns(); }
    int64_t num_distances() const { return 2 * a.window - 1; }
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

// Whether the shape was within what the kernel does; nothing is written where it was not.
inline bool attend_windows(const RelativeAttention& a, int threads) {
    if (!HAS_AVX512 || a.channels % 2 || a.window % 2 || a.channels > MOST_RELATIVE_CHANNELS) return false;
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
