// Attention of many queries: a prefill's, where each sees the keys up to its own, and the encoder's, where all see all.
//
// In: strided bfloat16 queries, keys and values (Attention, held the same in vl2/kernels/prefill_ops.py). Out: strided
// bfloat16 rows, and whether it was done: there are kernels for AVX-512, AMX and NEON, elsewhere PyTorch's attention is
// used. Callers are kernels.cpp, fused_prefill.h and encode.h. A task is one head of one batch. Scores, their softmax
// and all sums are float32; a query's result depends on nothing but itself and the keys that it sees, so neither on its
// neighbours nor on the number of threads.
#pragma once
#include <algorithm>
#include <vector>

#include "matmul.h"
#include "threads.h"

namespace vl2 {

// Rows of one head lie `row` elements apart, heads `head`, batches `batch`; channels lie together.
struct StridedRows {
    bf16* data;
    int64_t batch, head, row;

    bf16* at(int64_t b, int64_t h, int64_t r) const { return data + b * batch + h * head + r * row; }
};

// Held the same in Python, as a ctypes structure.
struct Attention {
    StridedRows query, key, value, out;
    int64_t batches, heads, shared;  // `shared` query heads look at the same keys
    int64_t queries, keys, channels, value_channels;
    int64_t before;  // query i sees keys 0 to before + i; -1: all keys
    double scale;

    // The keys that a query sees: the first so many.
    int64_t visible_keys(int64_t q) const { return before < 0 ? keys : std::min(keys, before + q + 1); }
};

// More value channels than eight vectors of AVX-512 would not stay in registers.
constexpr int64_t MOST_CHANNELS = 256, MOST_VALUE_CHANNELS = 128;

}  // namespace vl2

#if defined(VL2_AMX)
#include "prefill_attention_amx.h"
#elif defined(VL2_AVX512)
#include "prefill_attention_avx512.h"
#elif defined(VL2_NEON)
#include "prefill_attention_neon.h"
#else

namespace vl2 {

inline void attend_queries(const Attention&, int64_t, int64_t) {}  // never called

}  // namespace vl2
#endif

namespace vl2 {

// Whether the shape was within what the kernel does; nothing is written where it was not.
inline bool attend_many(const Attention& a, int threads) {
    if (!HAS_ATTENTION || a.channels % 2 || a.channels > MOST_CHANNELS || a.value_channels > MOST_VALUE_CHANNELS)
        return false;
    parallel_for(a.batches * a.heads, threads,
                 [&](int64_t task) { attend_queries(a, task / a.heads, task % a.heads); });
    return true;
}

}  // namespace vl2
