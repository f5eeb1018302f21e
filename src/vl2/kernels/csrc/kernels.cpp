// The C interface of the library, which vl2/kernels/library.py opens with ctypes.
//
// In: pointers into the caller's memory, sizes and strides as 64-bit integers, and the number of threads. Out: results
// in the caller's memory. Nothing is kept after a call but what threads reuse for the next. Functions that return a
// number say 1 when done, and 0 where the kernel does not do this shape or this machine has no such kernel: then Python
// takes the plain way. An exception that leaves a function ends the process, so those that allocate much catch
// std::bad_alloc. This is the only file that is compiled; every header is included from here.
#include <new>

#include "decode.h"
#include "encode.h"
#include "fused_prefill.h"
#include "gemm.h"
#include "instruction_set.h"
#include "int4.h"
#include "int8.h"
#include "prefill_attention.h"
#include "prefill_moe.h"
#include "relative_attention.h"
#include "row_ops.h"
#include "sam.h"

using namespace vl2;

// All else is hidden (-fvisibility=hidden). Libraries of several levels may be open in one process, and the loader would
// make one variable of the buffers that their inline functions keep, which differ between levels.
#pragma GCC visibility push(default)
extern "C" {

// Whether this machine has the instructions that this library was built for.
int vl2_is_supported() { return is_supported(); }

// Take the threads of an OpenMP runtime that is loaded already; 0 where that cannot be had.
int vl2_use_openmp(const char* path) { return openmp.open(path); }

// 1 when done, 0 where the kernel does not do this shape.
int64_t vl2_attend(const Attention* attention, int64_t threads) {
    return attend_many(*attention, static_cast<int>(threads));
}

// 1 when done, 0 where the kernel does not do this shape.
int64_t vl2_attend_windows(const RelativeAttention* attention, int64_t threads) {
    return attend_windows(*attention, static_cast<int>(threads));
}

// 1 when done, 0 where the kernel does not do this shape.
int64_t vl2_experts(const ExpertRows* experts, int64_t threads) {
    return run_experts(*experts, static_cast<int>(threads));
}

void vl2_normalize(const bf16* x, const bf16* weight, int64_t rows, int64_t width, double eps, bf16* out,
                   int64_t threads) {
    normalize_rows(x, weight, rows, width, eps, out, static_cast<int>(threads));
}

void vl2_layer_norm(const bf16* x, const bf16* weight, const bf16* bias, int64_t rows, int64_t width, double eps,
                    bf16* out, int64_t threads) {
    layer_norm_rows(x, weight, bias, rows, width, eps, out, static_cast<int>(threads));
}

void vl2_activate(bf16* x, int64_t count, int64_t activation, int64_t threads) {
    activate_all(x, count, activation, static_cast<int>(threads));
}

void vl2_gelu_gradient(const bf16* x, const bf16* grad, int64_t count, bf16* out, int64_t threads) {
    gelu_gradient(x, grad, count, out, static_cast<int>(threads));
}

void vl2_rotate(const bf16* x, const float* cosines, const float* sines, int64_t rows, int64_t heads, int64_t half,
                bf16* out, int64_t out_row, int64_t out_head, int64_t threads) {
    rotate_rows(x, cosines, sines, rows, heads, half, out, out_row, out_head, static_cast<int>(threads));
}

void vl2_swiglu_rows(const bf16* rows, int64_t count, int64_t width, int64_t fast, bf16* out, int64_t threads) {
    swiglu_rows(rows, count, width, fast != 0, out, static_cast<int>(threads));
}

void vl2_combine_experts(const bf16* rows, const int64_t* row_index, const float* weight, int64_t tokens, int64_t slots,
                         int64_t width, const bf16* residual, const bf16* second_residual, bf16* out, int64_t threads) {
    combine_experts(rows, row_index, weight, tokens, slots, width, residual, second_residual, out,
                    static_cast<int>(threads));
}

// 1 when done, 0 where the kernel does not do this shape.
int64_t vl2_router_logits(const bf16* x, int64_t tokens, int64_t width, const bf16* weight, int64_t experts, float* out,
                          int64_t threads) {
    return router_logits(x, tokens, width, weight, experts, out, static_cast<int>(threads));
}

void vl2_topk(const float* scores, int64_t rows, int64_t width, int64_t wanted, int64_t* indices, int64_t threads) {
    topk(scores, rows, width, wanted, indices, static_cast<int>(threads));
}

void vl2_sort_by_expert(const int64_t* expert, int64_t tokens, int64_t slots, int64_t experts, int64_t* token_index,
                        int64_t* row_index, int64_t* counts) {
    sort_by_expert(expert, tokens, slots, experts, token_index, row_index, counts);
}

void vl2_to_int8_rows(const bf16* x, int64_t rows, int64_t width, int8_t* codes, float* scales, int64_t threads) {
    to_int8_rows(x, rows, width, codes, scales, static_cast<int>(threads));
}

// `width` is at least 16; `bias` and `residual` may be null.
void vl2_from_int32_sums(const int32_t* sums, int64_t rows, int64_t width, const float* row_scales,
                         const float* column_scales, const bf16* bias, int64_t activation, const bf16* residual,
                         bf16* out, int64_t threads) {
    from_int32_sums(sums, rows, width, row_scales, column_scales, bias, activation, residual, out,
                    static_cast<int>(threads));
}

// 1 when done, 0 where the kernel does not do this shape.
int64_t vl2_multiply_many_rows(const RowsProduct* product, int64_t threads) {
    return multiply_many_rows(product, 1, static_cast<int>(threads));
}

void vl2_decode(const Model* model, const Step* step) { decode(*model, *step); }

// 1 when done; 0 where a kernel does not do a shape, or there is no memory: what x and the new places of the cache hold
// is then of no use.
int64_t vl2_prefill(const Model* model, const PrefillChunk* chunk) {
    try {
        return FusedPrefill(*model, *chunk).run();
    } catch (const std::bad_alloc&) {
        return 0;
    }
}

// 1 when done; 0 where a kernel does not do a shape, or there is no memory: what x holds is then of no use.
int64_t vl2_encode(const Encoder* encoder, bf16* x, int64_t tiles, int64_t patches, int64_t threads) {
    try {
        return encode(*encoder, x, tiles, patches, static_cast<int>(threads));
    } catch (const std::bad_alloc&) {
        return 0;
    }
}

// 1 when done; 0 where a kernel does not do a shape, or there is no memory: what is written is then of no use.
int64_t vl2_encode_sam(const Sam* sam, const SamViews* views, int64_t threads) {
    try {
        return encode_sam(*sam, *views, static_cast<int>(threads));
    } catch (const std::bad_alloc&) {
        return 0;
    }
}

// out [rows, outputs] = x [rows, stride] times w; rows of x are bfloat16 with zeros up to a multiple of 32 inputs.
void vl2_multiply(const Matrix* w, int64_t rows, const bf16* x, int64_t stride, float* out, int64_t threads) {
    OutputTasks tasks;
    tasks.add(0, w->outputs, w->bytes_per_output());
    tasks.split(threads);
    parallel_for(tasks.size(), static_cast<int>(threads), [&](int64_t task) {
        static thread_local std::vector<const bf16*> inputs;
        static thread_local std::vector<float*> outputs;
        inputs.resize(rows);
        outputs.resize(rows);
        for (int64_t m = 0; m < rows; m++) {
            inputs[m] = x + m * stride;
            outputs[m] = out + m * w->outputs + tasks[task].first;
        }
        multiply(*w, tasks[task].first, tasks[task].last, static_cast<int>(rows), inputs.data(),
                 outputs.data());
    });
}

// A weight [outputs, inputs], bfloat16 or float32, as int4; each group's scale is the best of the `scale_ratios` tried.
void vl2_to_int4(const void* weight, int64_t is_float32, int64_t outputs, int64_t inputs, const float* scale_ratios,
                 int64_t num_ratios, uint8_t* codes, uint16_t* scales) {
    if (is_float32)
        to_int4(static_cast<const float*>(weight), outputs, inputs, scale_ratios, num_ratios, codes, scales);
    else to_int4(static_cast<const bf16*>(weight), outputs, inputs, scale_ratios, num_ratios, codes, scales);
}

// The whole weight [outputs, inputs] of int4 codes and scales.
void vl2_from_int4(const uint8_t* codes, const uint16_t* scales, int64_t outputs, int64_t inputs, float* out,
                   int64_t threads) {
    const int64_t panels = (outputs + PANEL - 1) / PANEL;
    parallel_for(panels, static_cast<int>(threads), [&](int64_t panel) {
        const int64_t first = panel * PANEL, last = std::min(first + PANEL, outputs);
        from_int4(codes, scales, first, last, inputs, out + first * inputs);
    });
}

// The same as bfloat16, of whole panels: outputs a multiple of 16, inputs of 32. 0 where this machine has no such
// kernel.
int64_t vl2_unpack_int4(const uint8_t* codes, const uint16_t* scales, int64_t outputs, int64_t inputs, bf16* out,
                        int64_t threads) {
    return dequantize_int4(codes, scales, outputs, inputs, out, static_cast<int>(threads));
}
}
#pragma GCC visibility pop
