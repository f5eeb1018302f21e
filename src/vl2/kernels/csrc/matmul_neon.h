// `multiply` with NEON: bfloat16 weights, and int8 weights where there is no dot product of bytes.
//
// In and out as matmul.h says, which alone includes this; int4, and int8 in integers, are in matmul_quantized_neon.h,
// which it includes. A few rows of weights are multiplied at once by up to four or sixteen rows of activations, which
// are packed first: packed_pairs_neon.h with the matrix extensions, packed_floats_neon.h without.
#pragma once
#if defined(VL2_NEON_DOTPROD)
#include "packed_pairs_neon.h"
#endif
#if !defined(VL2_NEON_BF16)
#include "packed_floats_neon.h"
#endif

namespace vl2 {

inline void multiply_bf16(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x,
                          float* const* out) {
    static thread_local Bf16Rows rows;
    rows.pack(M, w.inputs, [&](int64_t m) { return x[m]; });
    rows.multiply(reinterpret_cast<const bf16*>(w.codes) + first * w.inputs, w.inputs, last - first,
                  [&](int64_t m) { return out[m]; });
}

#if !defined(VL2_NEON_DOTPROD)

inline void multiply_int8(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x,
                          float* const* out) {
    static thread_local PackedFloats rows;
    const float* scales = reinterpret_cast<const float*>(w.scales) + first;
    rows.pack(M, w.inputs, [&](int64_t m) { return x[m]; });
    rows.multiply(reinterpret_cast<const int8_t*>(w.codes) + first * w.inputs, w.inputs, last - first,
                  [&](int64_t m) { return out[m]; });
    for (int m = 0; m < M; m++)
        for (int64_t n = 0; n < last - first; n++) out[m][n] *= scales[n];
}

#endif

}  // namespace vl2

#include "matmul_quantized_neon.h"
