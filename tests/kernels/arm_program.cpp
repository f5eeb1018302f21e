// Every kernel of the library against sums in double precision, on random numbers; test_arm.py builds and runs it.
//
// It includes the library's one source, so it tests the instruction set that it is compiled for. Expected values come
// from the inputs alone. A bound of 2^-21 of the sum of all magnitudes is a few units of float32: an input too many or
// too few is far outside.
#include <cstdio>
#include <cstdlib>
#include <random>

#include "kernels.cpp"

namespace {

std::mt19937 generator(1);
int failures = 0, checks = 0;

void check(bool holds, const char* what, int64_t a = 0, int64_t b = 0, int64_t c = 0) {
    checks++;
    if (holds || failures++ > 20) return;
    std::printf("FAILED: %s (%lld, %lld, %lld)\n", what, (long long)a, (long long)b, (long long)c);
}

bool is_near(double got, double wanted, double magnitudes) {
    return std::fabs(got - wanted) <= std::ldexp(magnitudes, -21) + 1e-30;
}

// What rounding to bfloat16 `steps` times may change, and what a product is off by.
bool is_near_in_bf16(bf16 got, double wanted, double magnitudes, double steps = 1) {
    return std::fabs(to_float(got) - wanted) <= steps * std::ldexp(std::fabs(wanted), -8) + std::ldexp(magnitudes, -14);
}

std::vector<bf16> normal(int64_t count, float scale = 1) {
    std::normal_distribution<float> draw(0, scale);
    std::vector<bf16> out(count);
    for (bf16& value : out) value = to_bf16(draw(generator));
    return out;
}

// A weight in one of the three kinds, and the numbers that it stands for.
struct Weight {
    int64_t kind, outputs, inputs;
    std::vector<bf16> plain;
    std::vector<uint8_t> codes;
    std::vector<float> row_scales;
    std::vector<uint16_t> group_scales;
    std::vector<double> values;

    Weight(int64_t kind, int64_t outputs, int64_t inputs) : kind(kind), outputs(outputs), inputs(inputs) {
        plain = normal(outputs * inputs, 1 / std::sqrt(static_cast<float>(inputs)));
        values.resize(outputs * inputs);
        const int64_t groups = (inputs + GROUP - 1) / GROUP, panels = (outputs + PANEL - 1) / PANEL;
        if (kind == BF16) {
            for (size_t i = 0; i < values.size(); i++) values[i] = to_float(plain[i]);
        } else if (kind == INT8) {
            std::uniform_int_distribution<int> draw(-127, 127);
            codes.resize(outputs * inputs);
            row_scales.resize(outputs);
            for (int64_t n = 0; n < outputs; n++) {
                row_scales[n] = 0.001f * static_cast<float>(n + 1);
                for (int64_t k = 0; k < inputs; k++) {
                    const int code = draw(generator);
                    codes[n * inputs + k] = static_cast<uint8_t>(code);
                    values[n * inputs + k] = static_cast<double>(code) * row_scales[n];
                }
            }
        } else {
            const float ratio = 1;
            codes.resize(panels * groups * BLOCK_BYTES);
            group_scales.resize(panels * groups * PANEL);
            vl2_to_int4(plain.data(), 0, outputs, inputs, &ratio, 1, codes.data(), group_scales.data());
            // Read here as formats.py lays it out: eight inputs of an output are a word, even ones in its low half.
            for (int64_t n = 0; n < outputs; n++)
                for (int64_t k = 0; k < inputs; k++) {
                    const int64_t block = n / PANEL * groups + k / GROUP, in_group = k % GROUP;
                    uint32_t word;
                    std::memcpy(&word, &codes[block * BLOCK_BYTES + in_group / 8 * 64 + n % PANEL * 4], 4);
                    const int code = static_cast<int>(word >> (k % 2 * 16 + k / 2 % 4 * 4) & 15) - 8;
                    values[n * inputs + k] = code * static_cast<double>(from_half(group_scales[block * PANEL + n % PANEL]));
                }
        }
    }

    Matrix matrix() const {
        const uint8_t* at = kind == BF16 ? reinterpret_cast<const uint8_t*>(plain.data()) : codes.data();
        const void* scales = kind == INT8 ? static_cast<const void*>(row_scales.data()) : group_scales.data();
        return {kind, outputs, inputs, at, static_cast<const uint8_t*>(scales)};
    }
    double at(int64_t n, int64_t k) const { return values[n * inputs + k]; }
};

constexpr bool HAS_INT8_INTEGERS =
#if defined(VL2_NEON_DOTPROD) || defined(VL2_AVX512)
    true;
#else
    false;
#endif
constexpr bool HAS_INT4_INTEGERS =
#if defined(VL2_NEON) || defined(VL2_AVX512)
    true;
#else
    false;
#endif

// The activations that a product uses: with integers the nearest multiples of a power of two, of which the largest
// number of a group or row is at least 16256 and at most 32512.
std::vector<double> as_used(const std::vector<bf16>& x, int64_t rows, int64_t width, int64_t inputs, int64_t kind) {
    std::vector<double> used(x.size());
    const bool is_rounded = kind == INT8 ? HAS_INT8_INTEGERS : kind == INT4 && HAS_INT4_INTEGERS;
    const int64_t span = kind == INT4 ? GROUP : width;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t begin = 0; begin < inputs; begin += span) {
            double largest = 0;
            const int64_t end = std::min(begin + span, inputs);
            for (int64_t k = begin; k < end; k++)
                largest = std::max(largest, std::fabs(static_cast<double>(to_float(x[row * width + k]))));
            int power = 0;
            while (is_rounded && largest > 0 && std::ldexp(largest, power) <= 16256) power++;
            while (is_rounded && std::ldexp(largest, power) > 32512) power--;
            for (int64_t k = begin; k < end; k++) {
                const double value = to_float(x[row * width + k]);
                used[row * width + k] =
                    is_rounded ? std::ldexp(std::nearbyint(std::ldexp(value, power)), -power) : value;
            }
        }
    return used;
}

std::vector<bf16> padded_rows(int64_t rows, int64_t inputs) {
    const int64_t width = padded(inputs);
    std::vector<bf16> x(rows * width);
    for (int64_t row = 0; row < rows; row++) {
        const std::vector<bf16> some = normal(inputs, std::ldexp(1.0f, static_cast<int>(row % 5) * 6 - 12));
        std::copy(some.begin(), some.end(), x.begin() + row * width);
    }
    return x;
}

// Few rows: the numbers, the same bits in every batch, in every cut of the outputs, and with several threads.
void test_multiply() {
    const int64_t shapes[][2] = {{64, 128}, {33, 70}, {130, 4}, {80, 192}, {1, 1}, {17, 1000}, {48, 33}, {16, 2560}};
    for (const auto& [outputs, inputs] : shapes)
        for (int64_t kind : {BF16, INT8, INT4}) {
            constexpr int64_t ROWS = 35;
            const int64_t width = padded(inputs);
            const Weight weight(kind, outputs, inputs);
            const Matrix w = weight.matrix();
            const std::vector<bf16> x = padded_rows(ROWS, inputs);
            const std::vector<double> used = as_used(x, ROWS, width, inputs, kind);
            std::vector<float> all(ROWS * outputs), some(ROWS * outputs);
            vl2_multiply(&w, ROWS, x.data(), width, all.data(), 1);
            for (int64_t m = 0; m < ROWS; m++)
                for (int64_t n = 0; n < outputs; n++) {
                    double wanted = 0, magnitudes = 0;
                    for (int64_t k = 0; k < inputs; k++) {
                        wanted += used[m * width + k] * weight.at(n, k);
                        magnitudes += std::fabs(used[m * width + k] * weight.at(n, k));
                    }
                    check(is_near(all[m * outputs + n], wanted, magnitudes), "multiply", kind, outputs, inputs);
                }
            for (int64_t rows : {1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 34})
                for (int64_t first : {int64_t(0), ROWS - rows}) {
                    vl2_multiply(&w, rows, x.data() + first * width, width, some.data(), 2);
                    check(!std::memcmp(some.data(), &all[first * outputs], rows * outputs * sizeof(float)),
                          "multiply: bits of fewer rows", kind, outputs, rows);
                }
            for (int64_t first = 0; first < outputs; first += PANEL) {
                const int64_t last = std::min(outputs, first + PANEL);
                const bf16* row = x.data() + 3 * width;
                float* to = some.data();
                multiply(w, first, last, 1, &row, &to);
                check(!std::memcmp(to, &all[3 * outputs + first], (last - first) * sizeof(float)),
                      "multiply: bits of fewer outputs", kind, outputs, first);
            }
        }
}

// What is no number or infinite shows in its row alone; zeros stay zeros.
void test_not_finite() {
    for (int64_t kind : {BF16, INT8, INT4}) {
        const Weight weight(kind, 33, 70);
        const Matrix w = weight.matrix();
        std::vector<bf16> x = padded_rows(4, 70);
        std::fill_n(x.begin() + 96, 96, 0);
        x[2 * 96 + 5] = 0x7fc0;
        x[3 * 96 + 40] = 0x7f80;
        std::vector<float> out(4 * 33);
        vl2_multiply(&w, 4, x.data(), 96, out.data(), 1);
        for (int64_t n = 0; n < 33; n++) {
            check(std::isfinite(out[n]), "beside no number", kind, n);
            check(out[33 + n] == 0, "of zeros", kind, n);
            check(std::isnan(out[66 + n]), "of no number", kind, n);
            const bool is_zero = weight.at(n, 40) == 0;
            check(is_zero || !std::isfinite(out[99 + n]), "of infinity", kind, n);
        }
    }
}

// Many rows: bias, GELU and residual, in bfloat16 and in int8 with rows rounded to 8 bits.
void test_row_products() {
    const int64_t shapes[][3] = {{1, 16, 8}, {33, 176, 100}, {130, 64, 72}, {300, 48, 33}, {17, HAS_TILES ? 144 : 132, 256}};
    for (const auto& [rows, outputs, inputs] : shapes)
        for (int64_t kind : {BF16, INT8})
            for (int option = 0; option < 3; option++) {
                const bool gelu = option == 1, has_residual = option == 2;
                const Weight weight(kind, outputs, inputs);
                const std::vector<bf16> x = normal(rows * inputs), bias = normal(outputs);
                const std::vector<bf16> residual = normal(rows * outputs);
                std::vector<bf16> out(rows * outputs), few(outputs);
                RowsProduct product = product_of(weight.matrix(), x.data(), rows, inputs, out.data(), outputs);
                product.bias = bias.data();
                product.activation = gelu ? GELU_TANH : NO_ACTIVATION;
                product.residual = has_residual ? residual.data() : nullptr;
                const bool is_done = vl2_multiply_many_rows(&product, 3);
                check(is_done == HAS_ROW_PRODUCTS, "whether there are row products", rows, outputs, inputs);
                if (!is_done) return;
                for (int64_t m = 0; m < rows; m++) {
                    std::vector<int8_t> codes(inputs);
                    const float scale = to_int8_row(&x[m * inputs], inputs, codes.data());
                    for (int64_t n = 0; n < outputs; n++) {
                        double sum = 0, magnitudes = 0;
                        for (int64_t k = 0; k < inputs; k++) {
                            const double used = kind == INT8 ? codes[k] * static_cast<double>(scale)
                                                             : static_cast<double>(to_float(x[m * inputs + k]));
                            sum += used * weight.at(n, k);
                            magnitudes += std::fabs(used * weight.at(n, k));
                        }
                        sum += to_float(bias[n]);
                        if (gelu) magnitudes += std::fabs(sum) * 64;  // rounded before its GELU
                        if (gelu) sum *= 0.5 * (1 + std::tanh(0.7978845608 * (sum + 0.044715 * sum * sum * sum)));
                        if (has_residual) magnitudes += std::fabs(sum) * 128;  // rounded before it is added
                        sum += has_residual ? to_float(residual[m * outputs + n]) : 0;
                        check(is_near_in_bf16(out[m * outputs + n], sum, magnitudes, 1 + gelu), "rows times weight",
                              kind, m, n);
                    }
                }
                product.x += (rows - 1) * inputs;
                product.residual = has_residual ? &residual[(rows - 1) * outputs] : nullptr;
                product.rows = 1;
                product.out = few.data();
                vl2_multiply_many_rows(&product, 1);
                check(!std::memcmp(few.data(), &out[(rows - 1) * outputs], outputs * sizeof(bf16)),
                      "rows times weight: bits of one row", kind, rows, outputs);
            }
}

// Attention of many queries, each of which sees the keys up to its own, or all.
void test_attention() {
    struct Shape {
        int64_t batches, heads, shared, queries, keys, channels, value_channels, before;
    };
    for (const Shape& s : {Shape{2, 2, 1, 50, 50, 72, 72, -1}, Shape{1, 4, 2, 37, 60, 128, 128, 23},
                           Shape{1, 2, 1, 5, 9, 192, 100, 4}, Shape{1, 1, 1, 1, 1, 2, 1, 0}}) {
        const int64_t B = s.batches, H = s.heads, C = s.channels, V = s.value_channels, held = H / s.shared;
        std::vector<bf16> query = normal(B * H * s.queries * C, 0.5f), key = normal(B * held * s.keys * C, 0.5f);
        std::vector<bf16> value = normal(B * held * s.keys * V), out(B * s.queries * H * V), again(out.size());
        const double scale = 1 / std::sqrt(static_cast<double>(C));
        Attention a{{query.data(), H * s.queries * C, s.queries * C, C}, {key.data(), held * s.keys * C, s.keys * C, C},
                    {value.data(), held * s.keys * V, s.keys * V, V}, {out.data(), s.queries * H * V, V, H * V},
                    B, H, s.shared, s.queries, s.keys, C, V, s.before, scale};
        const bool is_done = vl2_attend(&a, 2);
        check(is_done == HAS_ATTENTION, "whether there is attention");
        if (!is_done) return;
        for (int64_t b = 0; b < B; b++)
            for (int64_t h = 0; h < H; h++)
                for (int64_t q = 0; q < s.queries; q++) {
                    const int64_t seen = s.before < 0 ? s.keys : std::min(s.keys, s.before + q + 1);
                    std::vector<double> weights(seen);
                    double total = 0;
                    for (int64_t k = 0; k < seen; k++) {
                        double score = 0;
                        for (int64_t c = 0; c < C; c++)
                            score += static_cast<double>(to_float(a.query.at(b, h, q)[c])) *
                                     to_float(a.key.at(b, h / s.shared, k)[c]);
                        total += weights[k] = std::exp(score * scale);
                    }
                    for (int64_t c = 0; c < V; c++) {
                        double wanted = 0, magnitudes = 0;
                        for (int64_t k = 0; k < seen; k++) {
                            const double part = weights[k] / total * to_float(a.value.at(b, h / s.shared, k)[c]);
                            wanted += part;
                            magnitudes += std::fabs(part);
                        }
                        // Weights are rounded to bfloat16: each part by up to 2^-9 of it.
                        check(is_near_in_bf16(a.out.at(b, h, q)[c], wanted, 32 * magnitudes), "attention", h, q, c);
                    }
                }
        if (s.before < 0) continue;
        // The last query alone, over the same keys.
        Attention last = a;
        last.query.data += (s.queries - 1) * C;
        last.queries = 1;
        last.before = s.before + s.queries - 1;
        last.out = {again.data(), H * V, V, H * V};
        vl2_attend(&last, 1);
        check(!std::memcmp(again.data(), a.out.at(0, 0, s.queries - 1), H * V * sizeof(bf16)),
              "attention: bits of one query", s.queries, s.keys, C);
    }
}

double silu_of(double x) { return x / (1 + std::exp(-x)); }

// Experts of some tokens in each kind, and what the router says of them.
void test_experts() {
    constexpr int64_t WIDTH = 96, HIDDEN = 64, TOKENS = 40;
    const std::vector<int64_t> counts = {0, 21, 1, 35}, first_row = {0, 0, 21, 22};
    for (int64_t kind : {BF16, INT8, INT4}) {
        std::vector<Weight> gates, ups, downs;
        for (size_t i = 0; i < counts.size(); i++) {
            gates.emplace_back(kind, HIDDEN, WIDTH);
            ups.emplace_back(kind, HIDDEN, WIDTH);
            downs.emplace_back(kind, WIDTH, HIDDEN);
        }
        const std::vector<bf16> x = normal(TOKENS * WIDTH);
        std::vector<int64_t> token(57);
        for (size_t row = 0; row < token.size(); row++) token[row] = static_cast<int64_t>(row * 7 % TOKENS);
        for (size_t expert = 1; expert < counts.size(); expert++) {
            const Matrix gate = gates[expert].matrix(), up = ups[expert].matrix(), down = downs[expert].matrix();
            const int64_t rows = counts[expert];
            std::vector<bf16> out(rows * WIDTH), alone(WIDTH);
            ExpertRows e{x.data(), TOKENS, &token[first_row[expert]], &rows, 1, WIDTH, HIDDEN,
                         {gate, 0, 0}, {up, 0, 0}, {down, 0, 0}, out.data()};
            const bool is_done = vl2_experts(&e, 2);
            check(is_done == (kind == INT8 ? HAS_ROW_PRODUCTS : HAS_BF16_PRODUCTS), "whether there are experts", kind);
            if (!is_done) break;
            double error = 0, largest = 0;
            for (int64_t row = 0; row < rows; row++) {
                const bf16* from = &x[token[first_row[expert] + row] * WIDTH];
                std::vector<double> hidden(HIDDEN);
                for (int64_t f = 0; f < HIDDEN; f++) {
                    double sums[2] = {};
                    for (int64_t k = 0; k < WIDTH; k++) {
                        sums[0] += to_float(from[k]) * gates[expert].at(f, k);
                        sums[1] += to_float(from[k]) * ups[expert].at(f, k);
                    }
                    hidden[f] = silu_of(sums[0]) * sums[1];
                }
                for (int64_t n = 0; n < WIDTH; n++) {
                    double wanted = 0;
                    for (int64_t f = 0; f < HIDDEN; f++) wanted += hidden[f] * downs[expert].at(n, f);
                    const double difference = to_float(out[row * WIDTH + n]) - wanted;
                    error += difference * difference;
                    largest += wanted * wanted;
                }
            }
            // Five roundings to bfloat16; with int8 two more to 8 bits, of about a hundredth each.
            check(std::sqrt(error / largest) < (kind == INT8 ? 0.03 : 0.01), "experts", kind, rows);
            check(error > 0, "experts are rounded", kind, rows);
            const int64_t one = 1;
            e.token = &token[first_row[expert] + rows - 1];
            e.counts = &one;
            e.out = alone.data();
            vl2_experts(&e, 1);
            check(!std::memcmp(alone.data(), &out[(rows - 1) * WIDTH], WIDTH * sizeof(bf16)),
                  "experts: bits of one row", kind, rows);
        }
    }
    for (int64_t experts : {int64_t(64), int64_t(7)}) {
        const Weight router(BF16, experts, WIDTH);
        const std::vector<bf16> x = normal(70 * WIDTH);
        std::vector<float> logits(70 * experts);
        if (!vl2_router_logits(x.data(), 70, WIDTH, router.plain.data(), experts, logits.data(), 2)) return;
        for (int64_t m = 0; m < 70; m++)
            for (int64_t n = 0; n < experts; n++) {
                double wanted = 0, magnitudes = 0;
                for (int64_t k = 0; k < WIDTH; k++) {
                    wanted += to_float(x[m * WIDTH + k]) * router.at(n, k);
                    magnitudes += std::fabs(to_float(x[m * WIDTH + k]) * router.at(n, k));
                }
                check(is_near(logits[m * experts + n], wanted, magnitudes), "router", experts, m, n);
            }
    }
}

// int4 as floats and as bfloat16: both exact, or rounded once.
void test_dequantize() {
    const Weight weight(INT4, 48, 96);
    std::vector<float> floats(48 * 96);
    std::vector<bf16> halves(48 * 96);
    vl2_from_int4(weight.codes.data(), weight.group_scales.data(), 48, 96, floats.data(), 2);
    const bool is_done =
        vl2_unpack_int4(weight.codes.data(), weight.group_scales.data(), 48, 96, halves.data(), 2);
    check(is_done == HAS_BF16_PRODUCTS, "whether int4 becomes bfloat16");
    for (size_t i = 0; i < floats.size(); i++) {
        check(floats[i] == weight.values[i], "int4 as floats", static_cast<int64_t>(i));
        check(!is_done || halves[i] == to_bf16(static_cast<float>(weight.values[i])), "int4 as bfloat16",
              static_cast<int64_t>(i));
    }
}

// What lies between products, at widths that fill no vector.
void test_row_ops() {
    for (int64_t width : {int64_t(64), int64_t(37), int64_t(3)}) {
        constexpr int64_t ROWS = 5;
        const std::vector<bf16> x = normal(ROWS * width), weight = normal(width), bias = normal(width);
        std::vector<bf16> rms(x.size()), layer(x.size()), gelu = x, gated(ROWS * width);
        vl2_normalize(x.data(), weight.data(), ROWS, width, 1e-6, rms.data(), 1);
        vl2_layer_norm(x.data(), weight.data(), bias.data(), ROWS, width, 1e-6, layer.data(), 2);
        vl2_activate(gelu.data(), ROWS * width, GELU_TANH, 1);
        const std::vector<bf16> pairs = normal(ROWS * 2 * width);
        vl2_swiglu_rows(pairs.data(), ROWS, width, 0, gated.data(), 1);
        std::vector<int8_t> codes(x.size());
        std::vector<float> scales(ROWS);
        vl2_to_int8_rows(x.data(), ROWS, width, codes.data(), scales.data(), 1);
        for (int64_t r = 0; r < ROWS; r++) {
            double sum = 0, squares = 0, most = 0;
            for (int64_t i = 0; i < width; i++) {
                const double value = to_float(x[r * width + i]);
                sum += value;
                squares += value * value;
                most = std::max(most, std::fabs(value));
            }
            const double mean = sum / width, variance = squares / width - mean * mean;
            for (int64_t i = 0; i < width; i++) {
                const double value = to_float(x[r * width + i]), factor = to_float(weight[i]);
                check(is_near_in_bf16(rms[r * width + i], value / std::sqrt(squares / width + 1e-6) * factor, 1e-3, 2),
                      "normalize", width, r, i);
                const double scaled = (value - mean) / std::sqrt(variance + 1e-6) * factor;
                check(is_near_in_bf16(layer[r * width + i], scaled + to_float(bias[i]), std::fabs(scaled)),
                      "layer norm", width, r, i);
                const double curve = 0.5 * (1 + std::tanh(0.7978845608 * (value + 0.044715 * value * value * value)));
                check(is_near_in_bf16(gelu[r * width + i], value * curve, 1e-3), "gelu", width, r, i);
                const double gate = to_float(pairs[2 * r * width + i]), up = to_float(pairs[(2 * r + 1) * width + i]);
                check(is_near_in_bf16(gated[r * width + i], silu_of(gate) * up, 1e-3, 2), "swiglu", width, r, i);
                check(std::fabs(codes[r * width + i] * most / 127 - value) <= most / 127 * 0.5001, "int8 rows", width, r, i);
            }
        }
    }
}

}  // namespace

int main() {
    if (!vl2_is_supported()) {
        std::puts("this processor lacks the instructions");
        return 3;
    }
    test_multiply();
    test_not_finite();
    test_row_products();
    test_attention();
    test_experts();
    test_dequantize();
    test_row_ops();
    std::printf("%d checks, %d failures\n", checks, failures);
    return failures ? 1 : 0;
}
