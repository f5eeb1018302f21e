// One token for every row, through all layers, in one call: embeddings in, float32 logits out, keys and values into the
// cache.
//
// In: a Model and a Step (model.h). Out: logits, and if wanted the states that they are made of. Called by kernels.cpp
// for a decode step, and by fused_prefill.h for the last position of a prompt. Each phase of a layer is shared out
// among the threads and ends at a barrier, because the next reads what all of them wrote. A row has the same bits alone
// and in any batch. Neighboring rows with one cache are consecutive tokens of one sequence: each sees those before it,
// and has the bits that it would have in a call of its own.
#pragma once
#include "decode_attention.h"
#include "decode_mlp.h"
#include "decode_workspace.h"
#include "model.h"
#include "threads.h"

namespace vl2 {

// out = round(w * in) for all rows, outputs first to last.
inline void project(const Matrix& w, int64_t first, int64_t last, PaddedRows& in, PaddedRows& out, int64_t rows) {
    static thread_local MatmulOutputs results;
    results.inputs().clear();
    for (int64_t row = 0; row < rows; row++) results.inputs().push_back(in[row]);
    results.run(w, first, last);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t n = first; n < last; n++) out[row][n] = to_bf16(results[row][n - first]);
}

// The first row of each sequence, and the number of rows at the end.
inline std::vector<int64_t> sequence_starts(const Step& step) {
    std::vector<int64_t> starts;
    for (int64_t row = 0; row < step.rows; row++)
        if (row == 0 || step.cache_row(0, row).keys != step.cache_row(0, row - 1).keys) starts.push_back(row);
    starts.push_back(step.rows);
    return starts;
}

inline void decode(const Model& model, const Step& step) {
    const int64_t rows = step.rows, D = model.width;
    const bool is_latent = model.rank > 0, is_int8 = step.cache_row(0, 0).is_int8();
    const auto write_new_latent = is_int8 ? write_latent<CachedInt8Rows> : write_latent<CachedBf16Rows>;
    const auto attend_one_latent = is_int8 ? attend_latent<CachedInt8Rows> : attend_latent<CachedBf16Rows>;
    const auto attend_one_head = is_int8 ? attend_head<CachedInt8Rows> : attend_head<CachedBf16Rows>;
    const std::vector<int64_t> starts = sequence_starts(step);
    const int64_t sequences = static_cast<int64_t>(starts.size()) - 1;
    PaddedRows x, normed, query, key, value, attended, added;
    x.resize(rows, D);
    normed.resize(rows, D);
    query.resize(rows, model.layers[0].query.outputs);
    key.resize(rows, model.layers[0].key.outputs);
    value.resize(rows, is_latent ? 0 : model.layers[0].value.outputs);
    attended.resize(rows, model.layers[0].output.inputs);
    added.resize(rows, D);
    for (int64_t row = 0; row < rows; row++) std::copy_n(step.inputs + row * D, D, x[row]);
    OutputTasks qkv, output, head;
    qkv.add(0, model.layers[0].query.outputs, model.layers[0].query.bytes_per_output());
    qkv.add(1, model.layers[0].key.outputs, model.layers[0].key.bytes_per_output());
    if (!is_latent) qkv.add(2, model.layers[0].value.outputs, model.layers[0].value.bytes_per_output());
    output.add(0, D, model.layers[0].output.bytes_per_output());
    head.add(0, model.head.outputs, model.head.bytes_per_output());
    for (OutputTasks* tasks : {&qkv, &output, &head}) tasks->split(step.threads);
    MLPState mlp;  // written by one phase and read by the next, with a barrier in between

    run_team(static_cast<int>(step.threads), [&](Team& team, int) {
        int phase = 0;
        team.each(rows, phase, [&](int64_t row) {
            normalize(x[row], model.layers[0].input_norm, D, model.norm_eps, normed[row]);
        });
        for (int64_t index = 0; index < model.num_layers; index++) {
            const Layer& layer = model.layers[index];
            team.each(qkv.size(), phase, [&](int64_t task) {
                const OutputTasks::Task& part = qkv[task];
                const Matrix& w = part.matrix == 0 ? layer.query : part.matrix == 1 ? layer.key : layer.value;
                PaddedRows& out = part.matrix == 0 ? query : part.matrix == 1 ? key : value;
                project(w, part.first, part.last, normed, out, rows);
            });
            if (is_latent) {
                team.each(rows, phase, [&](int64_t row) {
                    const int64_t angles = row * model.rope_dim / 2;
                    write_new_latent(model, layer, step.cache_row(index, row), step.lengths[row],
                                     step.cosines + angles, step.sines + angles, key[row]);
                });
                team.each(rows * model.heads, phase, [&](int64_t task) {
                    const int64_t row = task / model.heads;
                    attend_one_latent(model, step, index, row, task % model.heads, query[row], attended[row]);
                });
            } else {
                // The rows of a sequence in order, since each writes the key and value that the next one attends to.
                team.each(sequences * model.kv_heads, phase, [&](int64_t task) {
                    const int64_t sequence = task / model.kv_heads, head = task % model.kv_heads;
                    for (int64_t row = starts[sequence]; row < starts[sequence + 1]; row++)
                        attend_one_head(model, step, index, row, head, query[row], key[row], value[row], attended[row]);
                });
            }
            team.each(output.size(), phase, [&](int64_t task) {
                project(layer.output, output[task].first, output[task].last, attended, added, rows);
            });
            team.each(rows, phase, [&](int64_t row) {
                for (int64_t d = 0; d < D; d++) x[row][d] = to_bf16(to_float(x[row][d]) + to_float(added[row][d]));
                normalize(x[row], layer.post_norm, D, model.norm_eps, normed[row]);
            });
            team.each(1, phase, [&](int64_t) { plan_mlp(model, layer, step.threads, mlp, normed, rows); });
            team.each(mlp.up.size(), phase,
                      [&](int64_t task) { run_up(model, layer, mlp.up[task], mlp, normed, rows); });
            team.each(mlp.down.size(), phase, [&](int64_t task) { run_down(model, layer, mlp.down[task], mlp, rows); });
            const bool is_last = index + 1 == model.num_layers;
            team.each(rows, phase, [&](int64_t row) {
                combine(model, layer, mlp, row, x[row]);
                const bf16* weight = is_last ? model.final_norm : model.layers[index + 1].input_norm;
                normalize(x[row], weight, D, model.norm_eps, normed[row]);
            });
        }
        team.each(head.size(), phase, [&](int64_t task) {
            static thread_local MatmulOutputs results;
            const OutputTasks::Task& part = head[task];
            results.inputs().clear();
            for (int64_t row = 0; row < rows; row++) results.inputs().push_back(normed[row]);
            results.run(model.head, part.first, part.last);
            // Rounded to bfloat16 as the plain model's are, so that both break ties alike.
            for (int64_t row = 0; row < rows; row++)
                for (int64_t n = part.first; n < part.last; n++)
                    step.logits[row * model.head.outputs + n] = rounded(results[row][n - part.first]);
        });
    });
    if (step.states)
        for (int64_t row = 0; row < rows; row++) std::copy_n(normed[row], D, step.states + row * D);
}

}  // namespace vl2
