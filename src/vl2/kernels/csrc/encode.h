// The blocks of the vision encoder over the patches of some tiles, in one call.
//
// In: an Encoder, whose blocks point to PyTorch's weights, and patches as bfloat16 rows. Out: the same rows after all
// blocks, in place; and whether it was done, for its products need AMX. Called by kernels.cpp for
// vl2/runtime/fused_passes.py. It is made of the kernels that Python calls one by one where this does not apply, for the
// reason that fused_prefill.h gives.
#pragma once
#include "gemm.h"
#include "memory.h"
#include "prefill_attention.h"
#include "row_ops.h"

namespace vl2 {

// All held the same in Python, as ctypes structures.
struct Norm {
    const bf16 *weight, *bias;
};

struct BiasedMatrix {
    Matrix weight;
    const bf16* bias;  // null: none
};

struct EncoderBlock {
    Norm attention_norm;
    BiasedMatrix qkv, projection;  // queries, keys and values of all heads, one behind another
    Norm mlp_norm;
    BiasedMatrix fc1, fc2;
};

struct Encoder {
    int64_t num_blocks, width, heads;
    double eps;  // of the norms
    const EncoderBlock* blocks;
};

// x [tiles, patches, width], in place. Whether the shapes were within what the kernels do; else what x holds is of no
// use.
inline bool encode(const Encoder& encoder, bf16* x, int64_t tiles, int64_t patches, int threads) {
    constexpr int64_t LINE = LINE_BYTES / sizeof(bf16);
    const int64_t rows = tiles * patches, D = encoder.width, H = encoder.heads, C = D / H;
    const int64_t qkv_row = round_up(3 * D, LINE), hidden_row = round_up(encoder.blocks->fc1.weight.outputs, LINE);
    const UninitializedBuffer<bf16> normed(rows * D), qkv(rows * qkv_row), attended(rows * D),
        hidden(rows * hidden_row);
    const auto multiply = [&](const BiasedMatrix& layer, const bf16* from, int64_t from_row, bf16* to, int64_t to_row,
                              bool gelu, const bf16* residual) {
        RowsProduct product = product_of(layer.weight, from, rows, from_row, to, to_row);
        product.bias = layer.bias;
        product.gelu = gelu;
        product.residual = residual;
        return multiply_rows_in_tiles(&product, 1, threads);
    };
    const auto normalize = [&](const Norm& norm) {
        layer_norm_rows(x, norm.weight, norm.bias, rows, D, encoder.eps, normed.data(), threads);
    };
    for (int64_t index = 0; index < encoder.num_blocks; index++) {
        const EncoderBlock& block = encoder.blocks[index];
        normalize(block.attention_norm);
        if (!multiply(block.qkv, normed.data(), D, qkv.data(), qkv_row, false, nullptr)) return false;
        const auto part = [&](int64_t i) { return StridedRows{qkv.data() + i * D, patches * qkv_row, C, qkv_row}; };
        const Attention attention{part(0), part(1), part(2), {attended.data(), patches * D, C, D},
                                  tiles, H, 1, patches, patches, C, C, -1, 1 / std::sqrt(static_cast<double>(C))};
        if (!attend_many(attention, threads)) return false;
        if (!multiply(block.projection, attended.data(), D, x, D, false, x)) return false;
        normalize(block.mlp_norm);
        if (!multiply(block.fc1, normed.data(), D, hidden.data(), hidden_row, true, nullptr)) return false;
        if (!multiply(block.fc2, hidden.data(), hidden_row, x, D, false, x)) return false;
    }
    return true;
}

}  // namespace vl2
