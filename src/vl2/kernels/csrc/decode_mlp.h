// The MLPs of a decode step: the dense layer, and the mixture of experts, of which only those in use are read.
//
// In: the normed rows of a step. Out: the rows, to which experts and shared experts are added. Called by decode.h in
// four phases: `plan_mlp` (one thread routes and cuts the work), `run_up`, `run_down` (tasks, each some outputs of one
// expert for all rows that visit it) and `combine` (a task for each row). All is portable; the products are matmul.h's.
#pragma once
#include <numeric>

#include "decode_workspace.h"
#include "model.h"
#include "threads.h"

namespace vl2 {

// The rows that visit an expert, and which of their K choices it is.
struct Visits {
    int64_t expert;
    std::vector<int64_t> slots;  // row * K + k
};

struct Routing {
    std::vector<float> weights;  // [rows * K]
    std::vector<Visits> visits;  // experts in use, in their order
};

// The K best experts of one row by score and bias, and their weights, which are scores without the bias.
//
// The standard library's exp is used, not this library's: two scores near each other must fall as in the plain model.
// Equal scores go to the first expert, as in `topk` of prefill_moe.h.
inline void choose_experts(const Model& model, const Layer& layer, const bf16* x, float* weights, int64_t* chosen) {
    const int64_t E = model.experts, K = model.experts_per_token, D = model.width;
    static thread_local std::vector<float> scores, ranked;
    scores.resize(E);
    for (int64_t e = 0; e < E; e++) {
        Floats even = {}, odd = {};
        const bf16* row = layer.router + e * D;
        int64_t d = 0;
        for (; d + 2 * LANES <= D; d += 2 * LANES) {
            even += load(x + d) * load(row + d);
            odd += load(x + d + LANES) * load(row + d + LANES);
        }
        float total = sum(even + odd);
        for (; d < D; d++) total += to_float(x[d]) * to_float(row[d]);
        scores[e] = total;
    }
    if (model.is_sigmoid) {
        for (float& score : scores) score = 1.0f / (1.0f + std::exp(-score));
    } else {
        const float largest = *std::max_element(scores.begin(), scores.end());
        float total = 0;
        for (float& score : scores) total += score = std::exp(score - largest);
        for (float& score : scores) score /= total;
    }
    ranked = scores;
    if (layer.expert_bias)
        for (int64_t e = 0; e < E; e++) ranked[e] += layer.expert_bias[e];
    float total = 0;
    for (int64_t k = 0; k < K; k++) {
        const int64_t best = std::max_element(ranked.begin(), ranked.end()) - ranked.begin();
        ranked[best] = -INFINITY;
        chosen[k] = best;
        total += weights[k] = scores[best];
    }
    for (int64_t k = 0; k < K; k++) {
        if (model.is_normalized && K > 1) weights[k] /= total + 1e-20f;
        weights[k] *= static_cast<float>(model.routed_scale);
    }
}

inline Routing route(const Model& model, const Layer& layer, PaddedRows& normed, int64_t rows) {
    const int64_t K = model.experts_per_token;
    Routing routing;
    routing.weights.resize(rows * K);
    std::vector<int64_t> chosen(rows * K);
    for (int64_t row = 0; row < rows; row++)
        choose_experts(model, layer, normed[row], &routing.weights[row * K], &chosen[row * K]);
    std::vector<int64_t> order(rows * K);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return chosen[a] < chosen[b]; });
    for (int64_t slot : order) {
        if (routing.visits.empty() || routing.visits.back().expert != chosen[slot])
            routing.visits.push_back({chosen[slot], {}});
        routing.visits.back().slots.push_back(slot);
    }
    return routing;
}

// silu(gate) * up, rounded where the plain model rounds.
inline Floats swiglu(Floats gate, Floats up) { return rounded(silu(rounded(gate))) * rounded(up); }

// The first two products of a gated MLP and its activation, outputs first to last, for the rows at `gates.inputs()`.
inline void run_gate_up(const Matrix& gate, const Matrix& up, int64_t first, int64_t last, MatmulOutputs& gates,
                        MatmulOutputs& ups, const std::vector<bf16*>& to) {
    gates.run(gate, first, last);
    ups.inputs() = gates.inputs();
    ups.run(up, first, last);
    for (size_t m = 0; m < to.size(); m++) {
        int64_t n = first;
        for (; n + LANES <= last; n += LANES)
            store(to[m] + n, swiglu(load(gates[m] + n - first), load(ups[m] + n - first)));
        for (; n < last; n++) to[m][n] = to_bf16(swiglu(splat(gates[m][n - first]), splat(ups[m][n - first]))[0]);
    }
}

// What all threads share of the MLP of one layer. Slots are [rows * K]: a row's visit to an expert.
struct MLPState {
    Routing routing;
    PaddedRows slots, shared;                            // hidden activations
    std::vector<float> slot_outputs, shared_outputs;  // [.., width]
    OutputTasks up, down;
};

constexpr int64_t SHARED = -1;  // in the place of an index into the visits: the shared experts, or the dense layer

// Route the rows, and split the work of both phases. One thread does it: routing is short beside a barrier, and tasks
// must be the same for all.
inline void plan_mlp(const Model& model, const Layer& layer, int64_t threads, MLPState& state, PaddedRows& normed,
                     int64_t rows) {
    const int64_t K = model.experts_per_token;
    const bool is_moe = layer.router != nullptr;
    state.routing = is_moe ? route(model, layer, normed, rows) : Routing{};
    state.up.clear();
    state.down.clear();
    for (size_t v = 0; v < state.routing.visits.size(); v++) {
        const int64_t index = static_cast<int64_t>(v);
        state.up.add(index, layer.expert_gate.first.outputs, 2 * layer.expert_gate.first.bytes_per_output());
        state.down.add(index, model.width, layer.expert_down.first.bytes_per_output());
    }
    if (layer.gate.outputs) {
        state.up.add(SHARED, layer.gate.outputs, 2 * layer.gate.bytes_per_output());
        state.down.add(SHARED, model.width, layer.down.bytes_per_output());
        state.shared.resize(rows, layer.down.inputs);
        state.shared_outputs.resize(rows * model.width);
    }
    if (is_moe) {
        state.slots.resize(rows * K, layer.expert_down.first.inputs);
        state.slot_outputs.resize(rows * K * model.width);
    }
    state.up.split(threads);
    state.down.split(threads);
}

inline void run_up(const Model& model, const Layer& layer, const OutputTasks::Task& part, MLPState& state,
                   PaddedRows& normed, int64_t rows) {
    static thread_local MatmulOutputs gates, ups;
    static thread_local std::vector<bf16*> to;
    gates.inputs().clear();
    to.clear();
    if (part.matrix == SHARED) {
        for (int64_t row = 0; row < rows; row++) {
            gates.inputs().push_back(normed[row]);
            to.push_back(state.shared[row]);
        }
        run_gate_up(layer.gate, layer.up, part.first, part.last, gates, ups, to);
        return;
    }
    const Visits& visits = state.routing.visits[part.matrix];
    for (int64_t slot : visits.slots) {
        gates.inputs().push_back(normed[slot / model.experts_per_token]);
        to.push_back(state.slots[slot]);
    }
    run_gate_up(layer.expert_gate.at(visits.expert), layer.expert_up.at(visits.expert), part.first, part.last, gates,
                ups, to);
}

inline void run_down(const Model& model, const Layer& layer, const OutputTasks::Task& part, MLPState& state,
                     int64_t rows) {
    static thread_local MatmulOutputs results;
    results.inputs().clear();
    const int64_t D = model.width, count = part.last - part.first;
    if (part.matrix == SHARED) {
        for (int64_t row = 0; row < rows; row++) results.inputs().push_back(state.shared[row]);
        results.run(layer.down, part.first, part.last);
        for (int64_t row = 0; row < rows; row++)
            std::copy_n(results[row], count, &state.shared_outputs[row * D + part.first]);
        return;
    }
    const Visits& visits = state.routing.visits[part.matrix];
    for (int64_t slot : visits.slots) results.inputs().push_back(state.slots[slot]);
    results.run(layer.expert_down.at(visits.expert), part.first, part.last);
    for (size_t m = 0; m < visits.slots.size(); m++)
        std::copy_n(results[m], count, &state.slot_outputs[visits.slots[m] * D + part.first]);
}

// x += the weighted sum of a row's experts + its shared experts, rounded where the plain model rounds.
inline void combine(const Model& model, const Layer& layer, const MLPState& state, int64_t row, bf16* x) {
    const int64_t K = model.experts_per_token, D = model.width;
    const float* shared = layer.gate.outputs ? &state.shared_outputs[row * D] : nullptr;
    for (int64_t d = 0; d < D; d += LANES) {
        const int64_t count = std::min<int64_t>(LANES, D - d);
        auto read = [&](const float* from) {
            float part[LANES] = {};
            std::copy_n(from + d, count, part);
            return load(part);
        };
        Floats y = {};
        if (layer.router) {
            for (int64_t slot = row * K; slot < (row + 1) * K; slot++)
                y += rounded(read(&state.slot_outputs[slot * D])) * state.routing.weights[slot];
            y = rounded(y);
            if (shared) y = rounded(y + rounded(read(shared)));
        } else {
            y = rounded(read(shared));
        }
        float out[LANES];
        store(out, y);
        for (int64_t i = 0; i < count; i++) x[d + i] = to_bf16(to_float(x[d + i]) + out[i]);
    }
}

}  // namespace vl2
