// The product of gemm.h where rows are packed and summed in blocks of outputs: with AVX-512, and with the matrix
// extensions of NEON.
//
// In and out as gemm.h says, which alone includes this, behind gemm_avx512.h or gemm_neon.h; prefill_moe_int8.h uses
// `multiply_packed` by itself. Those files have `Bf16Input` and `Int8Input`: rows of a task, packed, and their sums with
// BLOCK outputs of a weight. What is made of the sums is here.
#pragma once
#include <algorithm>

#include "threads.h"

namespace vl2 {

// Outputs `first` to `first + count`, a multiple of LANES, of rows whose sums are made.
template <class Input>
void finish_rows(const Input& x, const RowsProduct& p, int64_t begin, int64_t end, int64_t first, int64_t count) {
    for (int64_t n = 0; n < count; n += LANES) {
        const auto outputs = x.outputs(p, first, n);
        for (int64_t row = begin; row < end; row++) {
            const Floats value = x.value(outputs, row, n, p.activation);
            bf16* to = p.out + row * p.out_stride + first + n;
            if (p.residual) store_fast(to, load(p.residual + row * p.outputs + first + n) + rounded(value));
            else store_fast(to, value);
        }
    }
}

// Up to BLOCK outputs of packed rows.
template <class Input>
void multiply_block(Input& x, const RowsProduct& p, int64_t first, int64_t count) {
    x.multiply(p, first, count,
               [&](int64_t begin, int64_t end) { finish_rows(x, p, begin, end, first, count); });
}

// All outputs of packed rows.
template <class Input>
void multiply_packed(Input& x, const RowsProduct& p) {
    for (int64_t first = 0; first < p.outputs; first += BLOCK)
        multiply_block(x, p, first, std::min(BLOCK, p.outputs - first));
}

// `count` products of the same rows, which are those of the first. A task is some rows with some blocks of outputs of
// all products: several tasks a thread, so that all threads end together.
template <class Input>
void multiply_rows(const RowsProduct* products, int64_t count, int64_t bytes, int threads) {
    const RowsProduct& all = *products;
    const auto blocks_of = [](const RowsProduct& p) { return (p.outputs + BLOCK - 1) / BLOCK; };
    int64_t blocks = 0;  // of all products, one behind another
    for (int64_t i = 0; i < count; i++) blocks += blocks_of(products[i]);
    // Chunks of rows of one size, as many for each thread.
    int64_t chunks = (all.rows + most_rows(bytes) - 1) / most_rows(bytes);
    if (chunks > 1) chunks = round_up(chunks, threads);
    const int64_t at_once = round_up((all.rows + chunks - 1) / chunks, SUMMED_ROWS);
    const int64_t splits = std::clamp<int64_t>((4 * threads + chunks - 1) / chunks, 1, blocks);
    parallel_for(chunks * splits, threads, [&](int64_t task) {
        static thread_local Input x;
        const int64_t first_row = task / splits * at_once, rows = std::min(at_once, all.rows - first_row);
        if (rows <= 0) return;
        const int64_t split = task % splits;
        const auto row_at = [&](int64_t row) { return all.x + (first_row + row) * all.x_stride; };
        x.pack(rows, all.inputs, row_at);
        int64_t begin = 0;  // of a product's blocks, among all
        for (int64_t i = 0; i < count; begin += blocks_of(products[i++])) {
            RowsProduct part = products[i];
            part.out += first_row * part.out_stride;
            if (part.residual) part.residual += first_row * part.outputs;
            const int64_t last = std::min((split + 1) * blocks / splits - begin, blocks_of(part));
            for (int64_t block = std::max<int64_t>(split * blocks / splits - begin, 0); block < last; block++)
                multiply_block(x, part, block * BLOCK, std::min(BLOCK, part.outputs - block * BLOCK));
        }
    });
}

// Whether the shapes were within what the kernel does; nothing is written where they were not. Weights are of one kind.
inline bool multiply_many_rows(const RowsProduct* products, int64_t count, int threads) {
    const RowsProduct& p = *products;
    if (p.rows < 1 || p.inputs < 1 || (p.kind == BF16 && p.inputs % BF16_INPUTS)) return false;
    int64_t outputs = 0;
    for (int64_t i = 0; i < count; i++) {
        if (products[i].outputs % LANES || products[i].kind != p.kind || products[i].inputs != p.inputs) return false;
        outputs += products[i].outputs;
    }
    const int64_t weights = outputs * p.inputs, bytes = p.inputs * (p.kind == INT8 ? 1 : 2);
    threads = useful_threads(threads, outputs * bytes, weights * p.rows);
    if (p.kind == INT8) multiply_rows<Int8Input>(products, count, bytes, threads);
    else if (p.kind == BF16) multiply_rows<Bf16Input>(products, count, bytes, threads);
    else return false;
    return true;
}

}  // namespace vl2
