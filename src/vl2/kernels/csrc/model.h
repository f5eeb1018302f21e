// The model, its cache and one decode step as plain structures, which Python fills in.
//
// In: pointers to PyTorch's memory, which vl2/runtime/fused_passes.py collects once and keeps alive. Read by decode.h
// and fused_prefill.h; nothing here owns or copies. Python holds the same as ctypes structures
// (vl2/kernels/structures.py): fields, order and sizes must agree, so all numbers are 64 bits wide.
#pragma once
#include "matmul.h"

namespace vl2 {

struct Layer {
    const bf16 *input_norm, *post_norm;
    Matrix query;
    Matrix key;    // of latent attention: latent and shared rotary key
    Matrix value;  // of latent attention: the expansion of the latent, bfloat16
    Matrix output;
    const bf16* latent_norm;
    Matrix gate, up, down;  // the dense layer or the shared experts; no outputs where there are none
    const bf16* router;     // null in a dense layer
    const float* expert_bias;
    Stack expert_gate, expert_up, expert_down;
};

struct Model {
    int64_t num_layers, width, heads, kv_heads, head_dim;
    int64_t rank, nope_dim, rope_dim, value_dim;  // of latent attention; rank 0 without
    int64_t experts, experts_per_token, is_sigmoid, is_normalized;
    double routed_scale, norm_eps, latent_eps;
    const Layer* layers;
    const bf16* final_norm;
    Matrix head;
};

// One layer of the cache of one row: [heads, positions, channels], or [positions, channels] with latent attention,
// where keys and values are the same. Numbers are bfloat16, or int8 codes where there are scales: [heads, positions],
// or [positions, 2] with latent attention, one for the latent and one for the rotary key. Strides are in elements.
struct CacheRow {
    void *keys, *values;
    int64_t head_stride, position_stride;
    float *key_scales, *value_scales;  // null where numbers are bfloat16
    int64_t scale_head_stride;

    bool is_int8() const { return key_scales != nullptr; }
};

// One call: a token for each row. Neighboring rows may have one cache, and lengths that follow each other.
struct Step {
    int64_t rows, threads;
    const bf16* inputs;             // [rows, width]
    const int64_t* lengths;         // positions that each row holds already
    const CacheRow* cache;          // [layers, rows]
    const float *cosines, *sines;   // [rows, rotary channels / 2], of the new position of each row
    float* logits;                  // [rows, vocabulary]
    bf16* states;                   // [rows, width], what the logits are made of; null: not wanted

    const CacheRow& cache_row(int64_t layer, int64_t row) const { return cache[layer * rows + row]; }
};

}  // namespace vl2
