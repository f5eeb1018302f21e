// A small model through the library: a prompt in one call against decoding token by token, and decoding in a batch
// against decoding alone. test_arm.py builds and runs it.
#include <cstdio>
#include <deque>
#include <random>

#include "kernels.cpp"

namespace {

constexpr int64_t WIDTH = 64, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 32, HIDDEN = 96, EXPERTS = 4, CHOSEN = 2;
constexpr int64_t LAYERS = 2, VOCABULARY = 48, POSITIONS = 16, TOKENS = 12;

std::mt19937 generator(1);
int failures = 0;

void check(bool holds, const char* what) {
    if (holds) return;
    failures++;
    std::printf("FAILED: %s\n", what);
}

// Random numbers that live until the end.
const bf16* normal(int64_t count, float scale, float mean = 0) {
    static std::deque<std::vector<bf16>> kept;
    std::normal_distribution<float> draw(mean, scale);
    std::vector<bf16>& values = kept.emplace_back(count);
    for (bf16& value : values) value = to_bf16(draw(generator));
    return values.data();
}

Matrix plain(int64_t outputs, int64_t inputs) {
    const bf16* values = normal(outputs * inputs, 1 / std::sqrt(static_cast<float>(inputs)));
    return {BF16, outputs, inputs, reinterpret_cast<const uint8_t*>(values), nullptr};
}

Stack stack(int64_t outputs, int64_t inputs) {
    Matrix first = plain(EXPERTS * outputs, inputs);
    first.outputs = outputs;
    return {first, 2 * outputs * inputs, 0};
}

// Keys and values of all layers of one sequence.
struct Cache {
    std::vector<bf16> keys, values;
    Cache() : keys(LAYERS * KV_HEADS * POSITIONS * HEAD_DIM), values(keys.size()) {}
    CacheRow layer(int64_t index) {
        const int64_t at = index * KV_HEADS * POSITIONS * HEAD_DIM;
        return {keys.data() + at, values.data() + at, POSITIONS * HEAD_DIM, HEAD_DIM};
    }
};

double distance(const bf16* a, const bf16* b, int64_t count) {
    double difference = 0, size = 0;
    for (int64_t i = 0; i < count; i++) {
        difference += std::pow(to_float(a[i]) - to_float(b[i]), 2.0);
        size += std::pow(to_float(b[i]), 2.0);
    }
    return std::sqrt(difference / size);
}

}  // namespace

int main() {
    std::vector<Layer> layers(LAYERS);
    for (Layer& layer : layers) {
        layer = {};
        layer.input_norm = normal(WIDTH, 0.1f, 1);
        layer.post_norm = normal(WIDTH, 0.1f, 1);
        layer.query = plain(HEADS * HEAD_DIM, WIDTH);
        layer.key = plain(KV_HEADS * HEAD_DIM, WIDTH);
        layer.value = plain(KV_HEADS * HEAD_DIM, WIDTH);
        layer.output = plain(WIDTH, HEADS * HEAD_DIM);
        layer.gate = plain(HIDDEN, WIDTH);
        layer.up = plain(HIDDEN, WIDTH);
        layer.down = plain(WIDTH, HIDDEN);
    }
    layers[0].router = normal(EXPERTS * WIDTH, 0.3f);
    layers[0].expert_gate = stack(HIDDEN, WIDTH);
    layers[0].expert_up = stack(HIDDEN, WIDTH);
    layers[0].expert_down = stack(WIDTH, HIDDEN);
    const Model model{LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, 0, 0, 0, 0, EXPERTS, CHOSEN, 0, 1,
                      1.0, 1e-6, 1e-6, layers.data(), normal(WIDTH, 0.1f, 1), plain(VOCABULARY, WIDTH)};
    constexpr int64_t HALF = HEAD_DIM / 2;
    std::vector<float> cosines(POSITIONS * HALF), sines(POSITIONS * HALF);
    for (int64_t i = 0; i < POSITIONS * HALF; i++) {
        const double angle = static_cast<double>(i / HALF) * std::pow(10000.0, -static_cast<double>(i % HALF) / HALF);
        cosines[i] = static_cast<float>(std::cos(angle));
        sines[i] = static_cast<float>(std::sin(angle));
    }
    const bf16* embeddings = normal(TOKENS * WIDTH, 1);

    // Token by token; each token alone, and beside other sequences of another length.
    Cache alone;
    std::vector<bf16> state(WIDTH), states(3 * WIDTH);
    std::vector<float> logits(VOCABULARY), together(3 * VOCABULARY);
    for (int64_t t = 0; t < TOKENS; t++) {
        Cache beside[3] = {alone, {}, {}};
        std::vector<CacheRow> one, three;
        for (int64_t index = 0; index < LAYERS; index++) {
            one.push_back(alone.layer(index));
            for (Cache& cache : beside) three.push_back(cache.layer(index));
        }
        std::vector<bf16> inputs;
        std::vector<float> three_cosines, three_sines;
        const int64_t lengths[3] = {t, 0, 0};
        for (int64_t length : lengths) {
            inputs.insert(inputs.end(), embeddings + t * WIDTH, embeddings + (t + 1) * WIDTH);
            three_cosines.insert(three_cosines.end(), &cosines[length * HALF], &cosines[length * HALF] + HALF);
            three_sines.insert(three_sines.end(), &sines[length * HALF], &sines[length * HALF] + HALF);
        }
        const Step step{1, 1, embeddings + t * WIDTH, &t, one.data(), &cosines[t * HALF], &sines[t * HALF],
                        logits.data(), state.data()};
        const Step batch{3, 2, inputs.data(), lengths, three.data(), three_cosines.data(), three_sines.data(),
                         together.data(), states.data()};
        vl2_decode(&model, &step);
        vl2_decode(&model, &batch);
        check(!std::memcmp(logits.data(), together.data(), VOCABULARY * sizeof(float)), "logits alone and in a batch");
        check(alone.keys == beside[0].keys && alone.values == beside[0].values, "the cache alone and in a batch");
    }

    // All tokens in one call.
    Cache whole;
    std::vector<CacheRow> rows;
    for (int64_t index = 0; index < LAYERS; index++) rows.push_back(whole.layer(index));
    std::vector<bf16> x(embeddings, embeddings + TOKENS * WIDTH), last(WIDTH);
    const PrefillChunk chunk{TOKENS, 0, 2, rows.data(), cosines.data(), sines.data(), x.data(), last.data()};
    const bool is_done = vl2_prefill(&model, &chunk);
    check(is_done == HAS_ROW_PRODUCTS, "whether a prompt is one call");
    if (is_done) {
        check(distance(last.data(), state.data(), WIDTH) < 0.03, "the state after a prompt");
        check(distance(whole.keys.data(), alone.keys.data(), static_cast<int64_t>(whole.keys.size())) < 0.03, "keys");
        check(distance(whole.values.data(), alone.values.data(), static_cast<int64_t>(whole.values.size())) < 0.03,
              "values");
        std::printf("the state differs by %.4f\n", distance(last.data(), state.data(), WIDTH));
    }
    std::printf("%d failures\n", failures);
    return failures ? 1 : 0;
}
