// Many rows of bfloat16 times a whole weight in bfloat16 or int8, with bias, activation and residual in the epilogue.
//
// In: a RowsProduct, held the same in Python (vl2/kernels/matmul.py). Out: bfloat16 rows, and whether it was done: AMX
// has this kernel (gemm_amx.h), and so have AVX-512 and the matrix extensions of NEON (gemm_blocks.h); elsewhere
// PyTorch's own products are used. Callers are kernels.cpp, fused_prefill.h and encode.h.
#pragma once
#include "matmul.h"

namespace vl2 {

// Held the same in Python, as a ctypes structure.
struct RowsProduct {
    const bf16* x;  // [rows, inputs], `x_stride` numbers from one row to the next
    int64_t rows, inputs, x_stride;
    int64_t kind;                // BF16 or INT8
    const void* weight;          // [outputs, inputs]
    const float* column_scales;  // [outputs], of INT8
    const bf16* bias;            // [outputs]; null: none
    int64_t outputs;
    int64_t activation;          // of the result, an Activation
    const bf16* residual;        // [rows, outputs], to which the result, rounded, is added; null: none
    bf16* out;                   // [rows, outputs], `out_stride` from one row to the next
    int64_t out_stride;
};

// Rows times a matrix in bfloat16 or int8, with no bias and nothing behind it.
inline RowsProduct product_of(const Matrix& w, const bf16* x, int64_t rows, int64_t x_stride, bf16* out,
                              int64_t out_stride) {
    const float* scales = w.kind == INT8 ? reinterpret_cast<const float*>(w.scales) : nullptr;
    return {x, rows, w.inputs, x_stride, w.kind, w.codes, scales, nullptr, w.outputs, NO_ACTIVATION, nullptr, out,
            out_stride};
}

}  // namespace vl2

#if defined(VL2_AMX)
#include "gemm_amx.h"
#elif defined(VL2_AVX512)
#include "gemm_avx512.h"
#include "gemm_blocks.h"
#elif defined(VL2_NEON_BF16)
#include "gemm_neon.h"
#include "gemm_blocks.h"
#else

namespace vl2 {

inline bool multiply_many_rows(const RowsProduct*, int64_t, int) { return false; }

}  // namespace vl2
#endif
