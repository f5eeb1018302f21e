// A few rows of activations times a weight that is held in bfloat16, int8 or int4, as vl2/quant/formats.py lays them
// out.
//
// In: bfloat16 rows filled up with zeros to a multiple of 32 inputs, and a Matrix. Out: float32 outputs `first` to
// `last` of each row. `multiply` is called by decode.h and decode_mlp.h for each task, and by kernels.cpp for the
// layers that Python runs one by one. For few rows the weight's bytes from memory are the limit, so no kernel packs it.
// Every result is summed in one fixed order, whatever number of rows is computed beside it. Exactly one of the files
// below does the work.
#pragma once
#include <algorithm>

#include "simd.h"

namespace vl2 {

enum Kind : int32_t { BF16 = 0, INT8 = 1, INT4 = 2 };
// int4 lies in panels of sixteen outputs, one a lane of AVX-512, and has a scale for each group of 32 inputs; a block
// is one group of a panel.
constexpr int64_t PANEL = 16, GROUP = 32, BLOCK_BYTES = PANEL * GROUP / 2;

// A weight [outputs, inputs]. Held the same in Python, as a ctypes structure.
struct Matrix {
    int64_t kind, outputs, inputs;
    const uint8_t* codes;
    const uint8_t* scales;

    int64_t groups() const { return (inputs + GROUP - 1) / GROUP; }
    int64_t bytes_per_output() const {
        return kind == BF16 ? 2 * inputs : kind == INT8 ? inputs : groups() * (GROUP / 2 + 2);
    }
};

// Matrices of one shape, those of a layer's experts, behind one another; the strides are in bytes.
struct Stack {
    Matrix first;
    int64_t code_stride, scale_stride;
    const uint8_t* const* each = nullptr;  // where the codes of each lie, if they are not at equal distances

    Matrix at(int64_t index) const {
        Matrix matrix = first;
        if (each) {
            matrix.codes = each[index];
            return matrix;
        }
        matrix.codes += index * code_stride;
        matrix.scales += index * scale_stride;
        return matrix;
    }
};

inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Activations are held in rows of a multiple of 32, filled up with zeros.
inline int64_t padded(int64_t inputs) { return round_up(inputs, GROUP); }

// Call `step` with each group of a row of weights, the last filled up with zeros: beyond a row lies the next, or what
// is not ours to read.
template <class T, class Step>
inline void for_each_group(const T* row, int64_t inputs, const Step& step) {
    const int64_t whole = inputs - inputs % GROUP;
    for (int64_t k = 0; k < whole; k += GROUP) step(row + k, k);
    if (whole < inputs) {
        T rest[GROUP] = {};
        std::copy(row + whole, row + inputs, rest);
        step(rest, whole);
    }
}

}  // namespace vl2

#if defined(VL2_AVX512)
#include "matmul_avx512.h"
#elif defined(VL2_AVX2)
#include "matmul_avx2.h"
#elif defined(VL2_NEON)
#include "matmul_neon.h"
#else
#include "matmul_portable.h"
#endif

namespace vl2 {

// Outputs first to last of M rows; `first` is a multiple of 16, and so is `last` unless it is the last of all.
inline void multiply(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x, float* const* out) {
    if (w.kind == INT4) multiply_int4(w, first, last, M, x, out);
    else if (w.kind == INT8) multiply_int8(w, first, last, M, x, out);
    else multiply_bf16(w, first, last, M, x, out);
}

}  // namespace vl2
