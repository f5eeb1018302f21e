// A chunk of a prompt through all layers, in one call.
//
// In: a Model and a PrefillChunk: embeddings, and a cache that holds what comes before. Out: the state of the last
// position, and keys and values (or latents) in the cache; and whether it was done, for it needs `multiply_many_rows`.
// Called by kernels.cpp for vl2/runtime/fused_passes.py. It is made of the kernels that Python calls one by one where
// this does not apply. But each of them reads many megabytes, and after it the interpreter finds neither its code nor
// its objects in a cache: that takes a third of a millisecond each time. In the last layer only the last position is a
// query, which is a step of decoding.
//
// Latents of all positions are expanded into each head's keys and values, layer by layer: for many queries these are
// fewer products than the absorbed form, in which a step of decoding attends.
#pragma once
#include <initializer_list>

#include "cached_rows.h"
#include "decode.h"
#include "gemm.h"
#include "int4.h"
#include "memory.h"
#include "model.h"
#include "prefill_attention.h"
#include "prefill_moe.h"
#include "row_ops.h"

namespace vl2 {

// Held the same in Python, as a ctypes structure.
struct PrefillChunk {
    int64_t rows, before, threads;  // positions that are new, and that the cache holds
    const CacheRow* cache;          // [layers]
    const float *cosines, *sines;   // [rows, rotary channels / 2], of the new positions
    bf16* x;                        // [rows, width], written over
    bf16* state;                    // [width], after the final norm
};

// Widths are multiples of 32, those of latent heads and of their cache of 16.
class FusedPrefill {
   public:
    FusedPrefill(const Model& model, const PrefillChunk& chunk)
        : model_(model),
          chunk_(chunk),
          rows_(chunk.rows),
          threads_(static_cast<int>(chunk.threads)),
          normed_(rows_ * model.width),
          query_(rows_ * model.heads * query_dim()),
          rotated_(is_latent() ? 0 : rows_ * model.heads * query_dim()),
          key_(rows_ * model.layers[0].key.outputs),
          value_(is_latent() ? 0 : rows_ * model.layers[0].value.outputs),
          expanded_keys_(is_latent() ? num_positions() * model.heads * query_dim() : 0),
          expanded_values_(is_latent() ? num_positions() * model.heads * model.value_dim : 0),
          attended_(rows_ * model.layers[0].output.inputs),
          mlp_(rows_ * model.width),
          slots_(rows_ * model.experts_per_token * model.width),
          logits_(rows_ * model.experts),
          weights_(rows_ * model.experts_per_token),
          chosen_(rows_ * model.experts_per_token),
          token_index_(rows_ * model.experts_per_token),
          row_index_(rows_ * model.experts_per_token),
          counts_(model.experts),
          plain_rows_(chunk.cache[0].is_int8() ? num_cached() : 0),
          dequantized_(max_dequantized(model)) {}

    // Whether the shapes were within what the kernels do; else what is written is of no use.
    bool run() {
        const int64_t last = model_.num_layers - 1;
        for (int64_t index = 0; index < last; index++) {
            const Layer& layer = model_.layers[index];
            const CacheRow held = opened(chunk_.cache[index]);
            if (!(is_latent() ? attend_latents(layer, held) : attend_heads(layer, held))) return false;
            close(held, chunk_.cache[index]);
            normalize_rows(chunk_.x, layer.post_norm, rows_, model_.width, model_.norm_eps, normed_.data(), threads_);
            if (!(layer.router ? add_experts(layer) : add_mlp(layer))) return false;
        }
        const CacheRow held = opened(chunk_.cache[last]);
        if (!prefill_last(model_.layers[last], held)) return false;
        close(held, chunk_.cache[last]);
        return true;
    }

   private:
    const Model& model_;
    const PrefillChunk& chunk_;
    const int64_t rows_;
    const int threads_;
    UninitializedBuffer<bf16> normed_, query_, rotated_, key_, value_, expanded_keys_, expanded_values_, attended_;
    UninitializedBuffer<bf16> mlp_, slots_;
    UninitializedBuffer<float> logits_, weights_;
    UninitializedBuffer<int64_t> chosen_, token_index_, row_index_, counts_;
    UninitializedBuffer<bf16> plain_rows_;  // of one layer, where the cache is of int8: keys, then values
    UninitializedBuffer<bf16> dequantized_;

    // Of bfloat16: with no more, each product of an MLP is shared out by itself.
    static constexpr int64_t FEW_ROWS = 16;

    bool is_latent() const { return model_.rank > 0; }

    int64_t query_dim() const { return is_latent() ? model_.nope_dim + model_.rope_dim : model_.head_dim; }

    int64_t num_positions() const { return chunk_.before + rows_; }

    // Numbers of one layer up to the last new position.
    int64_t num_cached() const {
        return num_positions() * (is_latent() ? model_.rank + model_.rope_dim : 2 * model_.kv_heads * model_.head_dim);
    }

    // The layer's cache as bfloat16: itself, or a copy of what a cache of int8 holds, with room for the new positions.
    CacheRow opened(const CacheRow& cache) const {
        if (!cache.is_int8()) return cache;
        bf16* keys = plain_rows_.data();
        if (is_latent()) {
            const CacheRow plain{keys, keys, 0, model_.rank + model_.rope_dim, nullptr, nullptr, 0};
            dequantize_latents(cache, plain, model_.rank, model_.rope_dim, chunk_.before, threads_);
            return plain;
        }
        const int64_t C = model_.head_dim;
        const CacheRow plain{keys, keys + num_cached() / 2, num_positions() * C, C, nullptr, nullptr, 0};
        dequantize_rows(cache, plain, model_.kv_heads, C, chunk_.before, threads_);
        return plain;
    }

    // Put the new positions of a copy into the cache that it was made of.
    void close(const CacheRow& plain, const CacheRow& cache) const {
        if (!cache.is_int8()) return;
        const int64_t first = chunk_.before, last = num_positions();
        if (is_latent()) quantize_latents(plain, cache, model_.rank, model_.rope_dim, first, last, threads_);
        else quantize_rows(plain, cache, model_.kv_heads, model_.head_dim, first, last, threads_);
    }

    // A weight times all rows at x, to rows of `out`, or added to such rows.
    struct Projection {
        const Matrix& weight;
        const bf16* x;
        bf16* out;
        int64_t out_stride;
        const bf16* residual = nullptr;
    };

    // Of the same rows. Codes of int4 are made bfloat16 first.
    bool multiply(std::initializer_list<Projection> projections) const {
        std::vector<RowsProduct> products;
        bf16* scratch = dequantized_.data();
        for (const Projection& p : projections) {
            const Matrix& w = p.weight;
            RowsProduct product = product_of(w, p.x, rows_, w.inputs, p.out, p.out_stride);
            product.residual = p.residual;
            if (w.kind == INT4) {
                const uint16_t* scales = reinterpret_cast<const uint16_t*>(w.scales);
                if (!dequantize_int4(w.codes, scales, w.outputs, w.inputs, scratch, threads_)) return false;
                product.kind = BF16;
                product.weight = scratch;
                scratch += w.outputs * w.inputs;
            }
            products.push_back(product);
        }
        if (multiply_many_rows(products.data(), static_cast<int64_t>(products.size()), threads_)) return true;
        // Weights of several kinds, one by one.
        return std::all_of(products.begin(), products.end(),
                           [&](const RowsProduct& p) { return multiply_many_rows(&p, 1, threads_); });
    }

    // Numbers that codes are made at once.
    static int64_t max_dequantized(const Model& model) {
        int64_t most = 0;
        const auto size = [](const Matrix& w) { return w.kind == INT4 ? w.outputs * w.inputs : 0; };
        for (int64_t i = 0; i < model.num_layers; i++) {
            const Layer& layer = model.layers[i];
            most = std::max({most, size(layer.query) + size(layer.key) + size(layer.value), size(layer.output)});
        }
        return most;
    }

    // Of normed x the keys, rotated, and the values, into the cache; and the queries, rotated, if they are wanted.
    bool project_heads(const Layer& layer, const CacheRow& cache, bool with_queries) const {
        const int64_t C = model_.head_dim, H = model_.heads, shared = model_.kv_heads;
        const int64_t step = cache.position_stride, first = chunk_.before * step;
        bf16 *keys = static_cast<bf16*>(cache.keys), *values = static_cast<bf16*>(cache.values);
        normalize_rows(chunk_.x, layer.input_norm, rows_, model_.width, model_.norm_eps, normed_.data(), threads_);
        const Projection key{layer.key, normed_.data(), key_.data(), shared * C};
        const Projection value{layer.value, normed_.data(), value_.data(), shared * C};
        const Projection query{layer.query, normed_.data(), query_.data(), H * C};
        if (!(with_queries ? multiply({query, key, value}) : multiply({key, value}))) return false;
        const auto rotate = [&](const bf16* x, int64_t heads, bf16* out, int64_t out_row, int64_t out_head) {
            rotate_rows(x, chunk_.cosines, chunk_.sines, rows_, heads, C / 2, out, out_row, out_head, threads_);
        };
        if (with_queries) rotate(query_.data(), H, rotated_.data(), H * C, C);
        rotate(key_.data(), shared, keys + first, step, cache.head_stride);
        store_heads(value_.data(), values + first, step, cache.head_stride);
        return true;
    }

    // x += attention of normed x.
    bool attend_heads(const Layer& layer, const CacheRow& cache) const {
        const int64_t C = model_.head_dim, H = model_.heads, step = cache.position_stride;
        if (!project_heads(layer, cache, true)) return false;
        bf16 *keys = static_cast<bf16*>(cache.keys), *values = static_cast<bf16*>(cache.values);
        const Attention attention{{rotated_.data(), 0, C, H * C}, {keys, 0, cache.head_stride, step},
                                  {values, 0, cache.head_stride, step}, {attended_.data(), 0, C, H * C},
                                  1, H, H / model_.kv_heads, rows_, num_positions(), C, C, chunk_.before,
                                  1 / std::sqrt(static_cast<double>(C))};
        return attend_many(attention, threads_) &&
               multiply({{layer.output, attended_.data(), chunk_.x, model_.width, chunk_.x}});
    }

    // Of normed x the normed latents and the rotated shared keys, into the cache; and the queries, of which the rotary
    // channels are rotated, if they are wanted.
    bool project_latents(const Layer& layer, const CacheRow& cache, bool with_queries) const {
        const int64_t H = model_.heads, C = query_dim(), nope = model_.nope_dim, half = model_.rope_dim / 2;
        const int64_t width = model_.rank + model_.rope_dim;
        normalize_rows(chunk_.x, layer.input_norm, rows_, model_.width, model_.norm_eps, normed_.data(), threads_);
        const Projection latent{layer.key, normed_.data(), key_.data(), width};
        const Projection query{layer.query, normed_.data(), query_.data(), H * C};
        if (!(with_queries ? multiply({query, latent}) : multiply({latent}))) return false;
        parallel_rows(rows_, ROWS_AT_ONCE, threads_, [&](int64_t row) {
            const float *cosine = chunk_.cosines + row * half, *sine = chunk_.sines + row * half;
            write_latent<CachedBf16Rows>(model_, layer, cache, chunk_.before + row, cosine, sine,
                                         key_.data() + row * width);
            static thread_local std::vector<float> unrotated;
            unrotated.resize(2 * half);
            for (int64_t h = 0; with_queries && h < H; h++) {
                bf16* channels = query_.data() + row * H * C + h * C + nope;
                for (int64_t c = 0; c < 2 * half; c++) unrotated[c] = to_float(channels[c]);
                rotate_pairs(unrotated.data(), cosine, sine, half, channels);
            }
        });
        return true;
    }

    // Each head's keys and values, [positions, heads, channels], of the latents and shared keys in the cache.
    bool expand(const Layer& layer, const CacheRow& cache) const {
        const int64_t H = model_.heads, C = query_dim(), nope = model_.nope_dim, V = model_.value_dim, R = model_.rank;
        const bf16* latents = static_cast<const bf16*>(cache.keys);
        const bf16* weight = reinterpret_cast<const bf16*>(layer.value.codes);
        std::vector<RowsProduct> products;
        for (int64_t h = 0; h < H; h++, weight += (nope + V) * R) {
            const auto add = [&](const bf16* rows, int64_t outputs, bf16* out, int64_t out_stride) {
                const Matrix part{BF16, outputs, R, reinterpret_cast<const uint8_t*>(rows), nullptr};
                products.push_back(product_of(part, latents, num_positions(), cache.position_stride, out, out_stride));
            };
            add(weight, nope, expanded_keys_.data() + h * C, H * C);
            add(weight + nope * R, V, expanded_values_.data() + h * V, H * V);
        }
        if (!multiply_many_rows(products.data(), static_cast<int64_t>(products.size()), threads_)) return false;
        parallel_rows(num_positions(), ROWS_AT_ONCE, threads_, [&](int64_t position) {
            const bf16* shared = latents + position * cache.position_stride + R;
            for (int64_t h = 0; h < H; h++)
                std::copy_n(shared, model_.rope_dim, expanded_keys_.data() + (position * H + h) * C + nope);
        });
        return true;
    }

    // x += latent attention of normed x.
    bool attend_latents(const Layer& layer, const CacheRow& cache) const {
        const int64_t H = model_.heads, C = query_dim(), V = model_.value_dim;
        if (!project_latents(layer, cache, true) || !expand(layer, cache)) return false;
        const Attention attention{{query_.data(), 0, C, H * C}, {expanded_keys_.data(), 0, C, H * C},
                                  {expanded_values_.data(), 0, V, H * V}, {attended_.data(), 0, V, H * V},
                                  1, H, 1, rows_, num_positions(), C, V, chunk_.before,
                                  1 / std::sqrt(static_cast<double>(C))};
        return attend_many(attention, threads_) &&
               multiply({{layer.output, attended_.data(), chunk_.x, model_.width, chunk_.x}});
    }

    // Rows of heads beside one another to where each head's rows lie behind one another.
    void store_heads(const bf16* from, bf16* to, int64_t row_step, int64_t head_step) const {
        const int64_t C = model_.head_dim, width = model_.kv_heads * C;
        parallel_rows(rows_, 32, threads_, [&](int64_t row) {
            for (int64_t h = 0; h < model_.kv_heads; h++)
                std::copy_n(from + row * width + h * C, C, to + row * row_step + h * head_step);
        });
    }

    // x += the MLP of normed x.
    bool add_mlp(const Layer& layer) const {
        if (!run_mlp(layer, mlp_.data())) return false;
        parallel_rows(rows_, 32, threads_, [&](int64_t row) {
            bf16* x = chunk_.x + row * model_.width;
            const bf16* added = mlp_.data() + row * model_.width;
            for (int64_t d = 0; d < model_.width; d += LANES) store(x + d, load(x + d) + load(added + d));
        });
        return true;
    }

    // x += the weighted sum of each row's experts + the shared ones.
    bool add_experts(const Layer& layer) const {
        const int64_t E = model_.experts, K = model_.experts_per_token;
        if (!router_logits(normed_.data(), rows_, model_.width, layer.router, E, logits_.data(), threads_))
            return false;
        choose_experts_of_all(model_, layer.expert_bias, rows_, logits_.data(), chosen_.data(), weights_.data(),
                              threads_);
        sort_by_expert(chosen_.data(), rows_, K, E, token_index_.data(), row_index_.data(), counts_.data());
        const ExpertRows experts{normed_.data(), rows_, token_index_.data(), counts_.data(), E, model_.width,
                                 layer.expert_gate.first.outputs, layer.expert_gate, layer.expert_up, layer.expert_down,
                                 slots_.data()};
        if (!run_experts(experts, threads_)) return false;
        const bool is_shared = layer.gate.outputs > 0;
        if (is_shared && !run_mlp(layer, mlp_.data())) return false;
        combine_experts(slots_.data(), row_index_.data(), weights_.data(), rows_, K, model_.width,
                        is_shared ? mlp_.data() : chunk_.x, is_shared ? chunk_.x : nullptr, chunk_.x, threads_);
        return true;
    }

    // The dense layer's MLP, or the shared experts.
    bool run_mlp(const Layer& layer, bf16* out) const {
        const int64_t hidden = layer.gate.outputs;
        if (rows_ > FEW_ROWS || layer.gate.kind != BF16) {
            const auto single = [](const Matrix& w) { return Stack{w, 0, 0}; };
            const ExpertRows all{normed_.data(), rows_, nullptr, &rows_, 1, model_.width, hidden,
                                 single(layer.gate), single(layer.up), single(layer.down), out};
            return run_experts(all, threads_);
        }
        const UninitializedBuffer<bf16> gate_up(2 * rows_ * hidden), activated(rows_ * hidden);
        if (!multiply({{layer.gate, normed_.data(), gate_up.data(), 2 * hidden},
                       {layer.up, normed_.data(), gate_up.data() + hidden, 2 * hidden}}))
            return false;
        swiglu_rows(gate_up.data(), rows_, hidden, true, activated.data(), threads_);
        return multiply({{layer.down, activated.data(), out, model_.width}});
    }

    // The last layer, of which the last position's state alone is wanted.
    bool prefill_last(const Layer& layer, const CacheRow& cache) const {
        if (!(is_latent() ? project_latents(layer, cache, false) : project_heads(layer, cache, false))) return false;
        Model rest = model_;
        rest.num_layers = 1;
        rest.layers = &layer;
        rest.head.outputs = 0;
        const int64_t row = rows_ - 1, length = chunk_.before + row;
        const int64_t half = (is_latent() ? model_.rope_dim : model_.head_dim) / 2;
        decode(rest, {1, chunk_.threads, chunk_.x + row * model_.width, &length, &cache, chunk_.cosines + row * half,
                      chunk_.sines + row * half, nullptr, chunk_.state});
        return true;
    }
};

}  // namespace vl2
