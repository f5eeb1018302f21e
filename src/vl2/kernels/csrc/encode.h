// The blocks of a vision transformer over the patches of some tiles, in one call: SigLIP's and CLIP's.
//
// In: an Encoder, whose blocks point to PyTorch's weights, and patches as bfloat16 rows. Out: the same rows after all
// blocks, in place; and whether it was done, for its products need `multiply_many_rows`. Called by kernels.cpp for
// vl2/runtime/fused_passes.py; sam.h runs its blocks by BlockPass too. It is made of the kernels that Python calls one
// by one where this does not apply, for the reason that fused_prefill.h gives.
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
    int64_t num_blocks, width, heads, activation;  // the Activation of the MLPs
    double eps;                                    // of the norms
    const EncoderBlock* blocks;
};

// A layer times all rows at `from`: to rows of `to` with an activation, or added to rows of `residual`.
inline bool multiply_by(const BiasedMatrix& layer, const bf16* from, int64_t rows, int64_t from_row, bf16* to,
                        int64_t to_row, int64_t activation, const bf16* residual, int threads) {
    RowsProduct product = product_of(layer.weight, from, rows, from_row, to, to_row);
    product.bias = layer.bias;
    product.activation = activation;
    product.residual = residual;
    return multiply_many_rows(&product, 1, threads);
}

// Rows through pre-norm blocks, one after another, with the memory that a block needs in between.
class BlockPass {
   public:
    // `hidden` is the most of all blocks' MLPs; `wide` are numbers that `wide()` must hold besides.
    BlockPass(int64_t rows, int64_t width, int64_t hidden, int64_t activation, double eps, int threads,
              int64_t wide = 0)
        : rows_(rows), width_(width), activation_(activation), eps_(eps), threads_(threads), narrow_(rows * width),
          wide_(std::max(wide, rows * round_up(std::max(3 * width, hidden), LINE))) {}

    // x [rows, width], in place. `attend(qkv, row, out)` attends from rows of queries, keys and values, `row` numbers
    // apart, and returns whether it did. Whether the shapes were within what the kernels do.
    template <class Attend>
    bool run(const EncoderBlock& block, bf16* x, const Attend& attend) const {
        const int64_t D = width_, qkv_row = round_up(3 * D, LINE);
        const int64_t hidden_row = round_up(block.fc1.weight.outputs, LINE);
        const auto multiply = [&](const BiasedMatrix& layer, const bf16* from, int64_t from_row, bf16* to,
                                  int64_t to_row, int64_t activation, const bf16* residual) {
            return multiply_by(layer, from, rows_, from_row, to, to_row, activation, residual, threads_);
        };
        normalize(block.attention_norm, x);
        if (!multiply(block.qkv, narrow(), D, wide(), qkv_row, NO_ACTIVATION, nullptr)) return false;
        if (!attend(wide(), qkv_row, narrow())) return false;
        if (!multiply(block.projection, narrow(), D, x, D, NO_ACTIVATION, x)) return false;
        normalize(block.mlp_norm, x);
        return multiply(block.fc1, narrow(), D, wide(), hidden_row, activation_, nullptr) &&
               multiply(block.fc2, wide(), hidden_row, x, D, NO_ACTIVATION, x);
    }

    // Memory of [rows, width], and of queries, keys and values or hidden layers: free between blocks.
    bf16* narrow() const { return narrow_.data(); }
    bf16* wide() const { return wide_.data(); }

   private:
    static constexpr int64_t LINE = LINE_BYTES / sizeof(bf16);
    const int64_t rows_, width_, activation_;
    const double eps_;
    const int threads_;
    const UninitializedBuffer<bf16> narrow_, wide_;

    void normalize(const Norm& norm, const bf16* x) const {
        layer_norm_rows(x, norm.weight, norm.bias, rows_, width_, eps_, narrow(), threads_);
    }
};

// x [tiles, patches, width], in place. Whether the shapes were within what the kernels do; else what x holds is of no
// use.
inline bool encode(const Encoder& encoder, bf16* x, int64_t tiles, int64_t patches, int threads) {
    const int64_t D = encoder.width, H = encoder.heads, C = D / H;
    const BlockPass pass(tiles * patches, D, encoder.blocks->fc1.weight.outputs, encoder.activation, encoder.eps,
                         threads);
    const auto attend = [&](bf16* qkv, int64_t row, bf16* out) {
        const auto part = [&](int64_t i) { return StridedRows{qkv + i * D, patches * row, C, row}; };
        const Attention attention{part(0), part(1), part(2), {out, patches * D, C, D},
                                  tiles, H, 1, patches, patches, C, C, -1, 1 / std::sqrt(static_cast<double>(C))};
        return attend_many(attention, threads);
    };
    for (int64_t index = 0; index < encoder.num_blocks; index++)
        if (!pass.run(encoder.blocks[index], x, attend)) return false;
    return true;
}

}  // namespace vl2
