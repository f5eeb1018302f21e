// SAM, the first half of DeepEncoder, from pixels to the tokens of its map, in one call.
//
// In: a Sam, which points to PyTorch's weights, and SamViews: pixels, and what depends on their size. Out: the tokens
// of the maps as bfloat16 rows, and whether it was done, for its products need `multiply_many_rows`. Called by
// kernels.cpp for vl2/runtime/fused_encoders.py. A convolution is a product with rows of unfolded patches, in the order
// of its weight.
#pragma once
#include "encode.h"
#include "relative_attention.h"

namespace vl2 {

// All held the same in Python, as ctypes structures.
struct SamBlock {
    EncoderBlock block;
    int64_t window;  // patches along a side; 0: the whole view
};

struct Sam {
    int64_t num_blocks, width, heads, patch_px;
    double eps;
    const SamBlock* blocks;
    BiasedMatrix patch;          // [width, 3 patch_px^2]
    BiasedMatrix narrow, neck;   // of one patch, of 3 x 3; outputs are no more than `width`
    Norm narrow_norm, neck_norm;
    BiasedMatrix halve, halve_again;  // of 3 x 3, to half as many along each side
};

struct SamViews {
    const float* pixels;        // [views, 3, side_px, side_px]
    int64_t views, side_px;     // of whole patches
    const bf16* positions;      // [side, side, width], of a view's patches
    const bf16* const* tables;  // [blocks][2]: `along_h` and `along_w` of RelativeAttention
    bf16* out;                  // [views, side / 4, side / 4, channels], sides rounded up
};

inline int64_t halved(int64_t side) { return (side + 1) / 2; }

// Pixels as rows of patches, [views, side, side][3, patch, patch].
inline void unfold_patches(const SamViews& v, int64_t patch, bf16* out, int threads) {
    const int64_t P = v.side_px, side = P / patch, inputs = 3 * patch * patch;
    parallel_rows(v.views * side * side, ROWS_AT_ONCE, threads, [&](int64_t row) {
        const int64_t view = row / (side * side), y = row / side % side, x = row % side;
        bf16* to = out + row * inputs;
        for (int64_t line = 0; line < 3 * patch; line++, to += patch) {
            const float* from = v.pixels + ((view * 3 + line / patch) * P + y * patch + line % patch) * P + x * patch;
            int64_t i = 0;
            for (; i + LANES <= patch; i += LANES) store_fast(to + i, load(from + i));
            for (; i < patch; i++) to[i] = to_bf16(from[i]);
        }
    });
}

// Maps [views, side, side, channels] as rows of 3 x 3 places each, [channels][3, 3], at every place or every second
// along each side. Places beyond the edges are zeros.
inline void unfold(const bf16* maps, int64_t views, int64_t side, int64_t channels, int64_t stride, bf16* out,
                   int threads) {
    const int64_t to_side = (side - 1) / stride + 1;
    const std::vector<bf16> zeros(channels);
    parallel_rows(views * to_side * to_side, ROWS_AT_ONCE, threads, [&](int64_t row) {
        const int64_t view = row / (to_side * to_side);
        const int64_t y = row / to_side % to_side * stride, x = row % to_side * stride;
        const bf16* from[9];
        for (int64_t i = 0; i < 9; i++) {
            const int64_t at_y = y + i / 3 - 1, at_x = x + i % 3 - 1;
            const bool is_inside = at_y >= 0 && at_y < side && at_x >= 0 && at_x < side;
            from[i] = is_inside ? maps + ((view * side + at_y) * side + at_x) * channels : zeros.data();
        }
        bf16* to = out + row * 9 * channels;
        for (int64_t c = 0; c < channels; c++, to += 9)
            for (int64_t i = 0; i < 9; i++) to[i] = from[i][c];
    });
}

// Whether the shapes were within what the kernels do; else what is written is of no use.
inline bool encode_sam(const Sam& sam, const SamViews& v, int threads) {
    const int64_t D = sam.width, side = v.side_px / sam.patch_px, half = halved(side);
    const int64_t patches = side * side, rows = v.views * patches, half_rows = v.views * half * half;
    const int64_t neck = sam.narrow.weight.outputs, first = sam.halve.weight.outputs;
    const int64_t last_rows = v.views * halved(half) * halved(half);
    const int64_t unfolded = std::max({rows * sam.patch.weight.inputs, rows * sam.neck.weight.inputs,
                                       half_rows * sam.halve.weight.inputs, last_rows * sam.halve_again.weight.inputs});
    const UninitializedBuffer<bf16> kept(std::max(rows * D, half_rows * first));
    const BlockPass pass(rows, D, sam.blocks->block.fc1.weight.outputs, GELU, sam.eps, threads, unfolded);
    bf16 *x = kept.data(), *wide = pass.wide();
    unfold_patches(v, sam.patch_px, wide, threads);
    const int64_t inputs = sam.patch.weight.inputs;
    for (int64_t view = 0; view < v.views; view++)
        if (!multiply_by(sam.patch, wide + view * patches * inputs, patches, inputs, x + view * patches * D, D,
                         NO_ACTIVATION, v.positions, threads))
            return false;
    const std::vector<bf16> zeros(3 * D);
    for (int64_t i = 0; i < sam.num_blocks; i++) {
        const SamBlock& block = sam.blocks[i];
        const auto attend = [&](bf16* qkv, int64_t row, bf16* out) {
            // A place outside of the map is zeros after the norm, and what the layer's bias is after the layer.
            const bf16* outside = block.block.qkv.bias ? block.block.qkv.bias : zeros.data();
            const RelativeAttention attention{qkv, row, outside, out, v.views, side,
                                              block.window ? block.window : side, sam.heads, D / sam.heads,
                                              v.tables[2 * i], v.tables[2 * i + 1],
                                              1 / std::sqrt(static_cast<double>(D / sam.heads))};
            return attend_windows(attention, threads);
        };
        if (!pass.run(block.block, x, attend)) return false;
    }
    const auto convolve = [&](const BiasedMatrix& layer, const bf16* from, int64_t count, bf16* to) {
        return multiply_by(layer, from, count, layer.weight.inputs, to, layer.weight.outputs, NO_ACTIVATION, nullptr,
                           threads);
    };
    const auto normalize = [&](const Norm& norm, const bf16* from) {
        layer_norm_rows(from, norm.weight, norm.bias, rows, neck, sam.eps, pass.narrow(), threads);
    };
    if (!convolve(sam.narrow, x, rows, wide)) return false;
    normalize(sam.narrow_norm, wide);
    unfold(pass.narrow(), v.views, side, neck, 1, wide, threads);
    if (!convolve(sam.neck, wide, rows, x)) return false;
    normalize(sam.neck_norm, x);
    unfold(pass.narrow(), v.views, side, neck, 2, wide, threads);
    if (!convolve(sam.halve, wide, half_rows, x)) return false;
    unfold(x, v.views, half, first, 2, wide, threads);
    return convolve(sam.halve_again, wide, last_rows, v.out);
}

}  // namespace vl2
