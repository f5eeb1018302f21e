// Products with AVX-512: bfloat16 dot products, two inputs of 16 lanes an instruction.
//
// bfloat16 and int8 lie row by row: lanes are inputs, and are added up at the end of a row. An int8 code is a bfloat16
// number exactly. int4 lies in panels: lanes are outputs, inputs are broadcast, and a table turns four bits into
// bfloat16; the scale of a group is applied to the sum of its 32 products.
//
// What is read once from memory must come as one stream. Four rows of weights at a time, which spare loads of the
// inputs, halve the bandwidth of one core; so one or two rows of inputs go over one row of weights after another, and
// more of them over four rows which have been asked for ahead of time, evenly between the products.
#pragma once
#include <vector>

namespace vl2 {

constexpr int ROWS = 4;        // rows of weights whose lanes are added up together
constexpr int TILE = 4;        // rows of inputs at a time
constexpr int PANEL_TILE = 8;  // the same for panels
constexpr int64_t AHEAD = 10240;
// Lines asked for with every 64 bytes of bfloat16, where rows of weights are read one after another. Processors with AMX
// read a third faster so; those of AMD foresee such a stream by themselves.
#if defined(__AMX_BF16__)
constexpr int STREAM_LINES = 1;
#else
constexpr int STREAM_LINES = 0;
#endif

// Asks for memory before it is needed, into the second cache: `lines` of 64 bytes a step.
struct Ahead {
    const uint8_t* next;
    int lines;

    void step() {
        for (int i = 0; i < lines; i++, next += 64) _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T1);
    }
};

struct LoadBF16 {
    static constexpr int64_t bytes = 2;
    static __m512bh whole(const uint8_t* from) { return (__m512bh)_mm512_loadu_si512(from); }
    static __m512bh part(const uint8_t* from, int64_t count) {
        return (__m512bh)_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1u << count) - 1), from);
    }
};

// Each magnitude as bfloat16, its low and its high byte: there is no instruction from int8, so it is looked up.
struct Int8Table {
    alignas(64) uint8_t low[128], high[128];
    Int8Table() {
        for (int i = 0; i < 128; i++) {
            const bf16 value = to_bf16(static_cast<float>(i));
            low[i] = static_cast<uint8_t>(value);
            high[i] = static_cast<uint8_t>(value >> 8);
        }
    }
};
inline const Int8Table int8_table;

struct LoadInt8 {
    static constexpr int64_t bytes = 1;
    // 64 codes at once take half the work of twice 32.
    static void both(const uint8_t* from, __m512bh* out) {
        const __m512i apart = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
        const __m512i codes = _mm512_permutexvar_epi64(apart, _mm512_loadu_si512(from));
        const __m512i size = _mm512_abs_epi8(codes);
        const auto look_up = [&](const uint8_t* table) {
            return _mm512_permutex2var_epi8(_mm512_load_si512(table), size, _mm512_load_si512(table + 64));
        };
        const __m512i low = look_up(int8_table.low);
        // high | (codes & 0x80): the sign
        const __m512i high = _mm512_ternarylogic_epi32(look_up(int8_table.high), codes, _mm512_set1_epi8(-128), 0xf8);
        out[0] = (__m512bh)_mm512_unpacklo_epi8(low, high);
        out[1] = (__m512bh)_mm512_unpackhi_epi8(low, high);
    }
    static __m512bh whole(const uint8_t* from) { return widen(_mm256_loadu_si256((const __m256i*)from)); }
    static __m512bh part(const uint8_t* from, int64_t count) {
        return widen(_mm256_maskz_loadu_epi8(static_cast<__mmask32>((1u << count) - 1), from));
    }
    static __m512bh widen(__m256i codes) {
        const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(codes)));
        const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(codes, 1)));
        return _mm512_cvtne2ps_pbh(high, low);
    }
};

// The sums of four vectors. Each is added up in the same order, wherever it stands among the four.
inline __m128 sums(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
                                     _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// M rows of inputs with R rows of weights, into column `q` and those behind it. One sum a pair, in the order of inputs.
template <class Load, int M, int R>
inline void dots(const uint8_t* weight, int64_t stride, int64_t inputs, const bf16* const* x, __m512 (*out)[ROWS], int q,
                 Ahead& ahead) {
    __m512 acc[M][R];
    for (int m = 0; m < M; m++)
        for (int r = 0; r < R; r++) acc[m][r] = _mm512_setzero_ps();
    int64_t k = 0;
    if constexpr (Load::bytes == 1 && R == 1) {
        for (; k + 64 <= inputs; k += 64) {
            __m512bh w[2];
            Load::both(weight + k, w);
            ahead.step();
            for (int m = 0; m < M; m++) {
                acc[m][0] = _mm512_dpbf16_ps(acc[m][0], (__m512bh)_mm512_loadu_si512(x[m] + k), w[0]);
                acc[m][0] = _mm512_dpbf16_ps(acc[m][0], (__m512bh)_mm512_loadu_si512(x[m] + k + 32), w[1]);
            }
        }
    }
    for (; k + 32 <= inputs; k += 32) {
        __m512bh w[R];
        for (int r = 0; r < R; r++) w[r] = Load::whole(weight + r * stride + k * Load::bytes);
        ahead.step();
        for (int m = 0; m < M; m++) {
            const __m512bh input = (__m512bh)_mm512_loadu_si512(x[m] + k);
            for (int r = 0; r < R; r++) acc[m][r] = _mm512_dpbf16_ps(acc[m][r], input, w[r]);
        }
    }
    if (k < inputs) {
        for (int r = 0; r < R; r++) {
            const __m512bh w = Load::part(weight + r * stride + k * Load::bytes, inputs - k);
            for (int m = 0; m < M; m++)
                acc[m][r] = _mm512_dpbf16_ps(acc[m][r], (__m512bh)_mm512_loadu_si512(x[m] + k), w);
        }
    }
    for (int m = 0; m < M; m++)
        for (int r = 0; r < R; r++) out[m][q + r] = acc[m][r];
}

template <class Load, int R>
inline void dots(int M, const uint8_t* weight, int64_t stride, int64_t inputs, const bf16* const* x,
                 __m512 (*out)[ROWS], int q, Ahead& ahead) {
    switch (M) {
        case 1: return dots<Load, 1, R>(weight, stride, inputs, x, out, q, ahead);
        case 2: return dots<Load, 2, R>(weight, stride, inputs, x, out, q, ahead);
        case 3: return dots<Load, 3, R>(weight, stride, inputs, x, out, q, ahead);
        default: return dots<Load, 4, R>(weight, stride, inputs, x, out, q, ahead);
    }
}

// The int8 codes of a row as bfloat16.
inline void widen_row(const uint8_t* codes, int64_t inputs, bf16* to, Ahead& ahead) {
    int64_t k = 0;
    for (; k + 64 <= inputs; k += 64) {
        __m512bh wide[2];
        LoadInt8::both(codes + k, wide);
        _mm512_store_si512(to + k, (__m512i)wide[0]);
        _mm512_store_si512(to + k + 32, (__m512i)wide[1]);
        ahead.step();
    }
    for (; k + 32 <= inputs; k += 32) _mm512_store_si512(to + k, (__m512i)LoadInt8::whole(codes + k));
    if (k < inputs) _mm512_store_si512(to + k, (__m512i)LoadInt8::part(codes + k, inputs - k));
}

template <class Load>
inline void multiply_rows(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x, float* const* out) {
    const int64_t stride = w.inputs * Load::bytes, width = padded(w.inputs);
    const bool is_int8 = Load::bytes == 1, widens = is_int8 && M >= TILE, tiles = !is_int8 && M > 2;
    const float* scales = reinterpret_cast<const float*>(w.scales);
    static thread_local std::vector<bf16> wide_rows;
    if (widens) wide_rows.resize(ROWS * width + 32);
    bf16* const wide = reinterpret_cast<bf16*>(round_up(reinterpret_cast<int64_t>(wide_rows.data()), 64));
    const int num_tiles = (M + TILE - 1) / TILE;
    for (int64_t n = first; n < last; n += ROWS) {
        const int64_t rows = w.outputs - n < ROWS ? w.outputs - n : ROWS;
        const uint8_t* weight = w.codes + n * stride;
        // Each tile that passes over four rows asks for its share of four that come later.
        Ahead ahead{weight + (num_tiles > 1 ? 2 * AHEAD : AHEAD),
                    tiles ? (TILE + num_tiles - 1) / num_tiles : is_int8 ? 1 : STREAM_LINES};
        if (widens) {
            ahead.lines = 1;
            for (int64_t r = 0; r < rows; r++) widen_row(weight + r * stride, w.inputs, wide + r * width, ahead);
            ahead.lines = 0;
        }
        for (int m = 0; m < M; m += TILE) {
            const int count = M - m < TILE ? M - m : TILE;
            __m512 lanes[TILE][ROWS];
            if (rows == ROWS && widens)
                dots<LoadBF16, ROWS>(count, (const uint8_t*)wide, width * 2, w.inputs, x + m, lanes, 0, ahead);
            else if (rows == ROWS && tiles) dots<Load, ROWS>(count, weight, stride, w.inputs, x + m, lanes, 0, ahead);
            else
                for (int64_t r = 0; r < ROWS; r++) {
                    const int64_t row = r < rows ? r : rows - 1;
                    if (widens) dots<LoadBF16, 1>(count, (const uint8_t*)(wide + row * width), 0, w.inputs, x + m,
                                                  lanes, static_cast<int>(r), ahead);
                    else dots<Load, 1>(count, weight + row * stride, stride, w.inputs, x + m, lanes,
                                       static_cast<int>(r), ahead);
                }
            for (int i = 0; i < count; i++) {
                float four[ROWS];
                _mm_storeu_ps(four, sums(lanes[i][0], lanes[i][1], lanes[i][2], lanes[i][3]));
                for (int r = 0; r < ROWS && n + r < last; r++)
                    out[m + i][n + r - first] = is_int8 ? four[r] * scales[n + r] : four[r];
            }
        }
    }
}

// What a code of four bits stands for, as bfloat16. The index is the low five bits of a word: the fifth belongs to the next
// code, so the table is there twice.
alignas(64) inline const bf16 four_bit_values[32] = {
    0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0,
    0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0,
    0x40c0, 0x40e0};

template <int M>
inline void panel(const uint8_t* codes, const uint8_t* scales, int64_t groups, const bf16* const* x, __m512* out,
                  Ahead& ahead) {
    const __m512i table = _mm512_load_si512(four_bit_values);
    for (int m = 0; m < M; m++) out[m] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
        const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(scales + g * PANEL * 2)));
        __m512 acc[M][2];
        for (int m = 0; m < M; m++) acc[m][0] = acc[m][1] = _mm512_setzero_ps();
        ahead.step();
        for (int v = 0; v < 4; v++) {
            const __m512i words = _mm512_loadu_si512(codes + g * BLOCK_BYTES + v * 64);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                const __m512bh w = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4 * j), table);
                for (int m = 0; m < M; m++) {
                    int32_t pair;
                    std::memcpy(&pair, x[m] + g * GROUP + v * 8 + j * 2, 4);
                    acc[m][j & 1] = _mm512_dpbf16_ps(acc[m][j & 1], w, (__m512bh)_mm512_set1_epi32(pair));
                }
            }
        }
        for (int m = 0; m < M; m++) out[m] = _mm512_fmadd_ps(_mm512_add_ps(acc[m][0], acc[m][1]), scale, out[m]);
    }
}

inline void multiply_panels(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x,
                            float* const* out) {
    const int64_t groups = w.groups();
    const int num_tiles = (M + PANEL_TILE - 1) / PANEL_TILE;
    for (int64_t n = first; n < last; n += PANEL) {
        const uint8_t* codes = w.codes + n / PANEL * groups * BLOCK_BYTES;
        const uint8_t* scales = w.scales + n / PANEL * groups * PANEL * 2;
        const __mmask16 kept = last - n < PANEL ? static_cast<__mmask16>((1u << (last - n)) - 1) : 0xffff;
        Ahead ahead{codes + AHEAD, (4 + num_tiles - 1) / num_tiles};
        for (int m = 0; m < M; m += PANEL_TILE) {
            const int count = M - m < PANEL_TILE ? M - m : PANEL_TILE;
            __m512 results[PANEL_TILE];
            switch (count) {
                case 1: panel<1>(codes, scales, groups, x + m, results, ahead); break;
                case 2: panel<2>(codes, scales, groups, x + m, results, ahead); break;
                case 3: panel<3>(codes, scales, groups, x + m, results, ahead); break;
                case 4: panel<4>(codes, scales, groups, x + m, results, ahead); break;
                case 5: panel<5>(codes, scales, groups, x + m, results, ahead); break;
                case 6: panel<6>(codes, scales, groups, x + m, results, ahead); break;
                case 7: panel<7>(codes, scales, groups, x + m, results, ahead); break;
                default: panel<8>(codes, scales, groups, x + m, results, ahead); break;
            }
            for (int i = 0; i < count; i++) _mm512_mask_storeu_ps(out[m + i] + n - first, kept, results[i]);
        }
    }
}

// Outputs first to last of M rows; `first` is a multiple of 16, and so is `last` unless it is the last of all.
inline void multiply(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x, float* const* out) {
    if (w.kind == INT4) multiply_panels(w, first, last, M, x, out);
    else if (w.kind == INT8) multiply_rows<LoadInt8>(w, first, last, M, x, out);
    else multiply_rows<LoadBF16>(w, first, last, M, x, out);
}

}  // namespace vl2
