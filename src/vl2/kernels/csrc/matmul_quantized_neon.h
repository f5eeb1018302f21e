// `multiply` with NEON for int4 weights, and for int8 with the dot product of bytes: activations become integers too.
//
// In and out as matmul.h says; included by matmul_neon.h. Activations become 16-bit integers by a power of two that fits
// the largest of a group of 32 (int4) or of a row (int8), as with AVX-512 (matmul_quantized_avx512.h). With the dot
// product of bytes each is held as two bytes, 256 * high + low, and both are multiplied with the codes; without it int4
// multiplies 16-bit numbers. Sums of integers have the same bits in every order, so with int4 all levels of NEON give
// the same.
#pragma once
#include <algorithm>
#include <vector>

#include "int16.h"
#include "int8.h"
#include "memory.h"

namespace vl2 {

// Numbers as integers, to nearest and ties to even.
inline int32x4_t to_integers(Floats x, float factor) { return vcvtnq_s32_f32((float32x4_t)(x * factor)); }

// Eight of them in 16 bits.
inline int16x8_t eight_integers(const bf16* from, float factor) {
    return vcombine_s16(vmovn_s32(to_integers(load(from), factor)), vmovn_s32(to_integers(load(from + 4), factor)));
}

#if defined(VL2_NEON_DOTPROD)

// One group of a row: of each eight inputs the high bytes and then the low ones, as the codes are met: first 0, 4, 1, 5,
// then 2, 6, 3, 7. Low bytes have a sign too, so high ones are rounded to nearest.
struct alignas(16) NeonInt16Group {
    int8_t eights[GROUP / 8][16];

    void set(int64_t eight, int16x8_t integers) {
        const int8x16_t order = {0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15};
        const int8x16_t bytes = vcombine_s8(vrshrn_n_s16(integers, 8), vmovn_s16(integers));
        vst1q_s8(eights[eight], vqtbl1q_s8(bytes, vreinterpretq_u8_s8(order)));
    }
};

#else

struct alignas(16) NeonInt16Group {
    int16_t eights[GROUP / 8][8];

    void set(int64_t eight, int16x8_t integers) { vst1q_s16(eights[eight], integers); }
};

#endif

// Rows of activations as integers, each group of 32 by its own largest: one large activation costs its group alone.
class Int16Groups {
   public:
    std::vector<float> scales;     // [rows, groups]
    std::vector<int32_t> offsets;  // [rows, groups], minus eight times the sum: codes are held 8 above the weights

    void quantize(const bf16* const* x, int rows, int64_t groups) {
        const size_t count = rows * groups;
        if (scales.size() < count) {
            scales.resize(count);
            offsets.resize(count);
            groups_.resize(count);
        }
        for (int row = 0; row < rows; row++)
            for (int64_t g = 0; g < groups; g++) quantize_group(x[row] + g * GROUP, row * groups + g);
    }
    const NeonInt16Group& operator[](int64_t at) const { return groups_[at]; }

   private:
    AlignedVector<NeonInt16Group> groups_;

    void quantize_group(const bf16* from, int64_t at) {
        uint16x8_t most = vdupq_n_u16(0);
        for (int64_t k = 0; k < GROUP; k += 8)
            most = vmaxq_u16(most, vandq_u16(vld1q_u16(from + k), vdupq_n_u16(0x7fff)));
        const PowerScale scale_of = power_scale(vmaxvq_u16(most));
        int32x4_t sum = vdupq_n_s32(0);
        for (int64_t eight = 0; eight < GROUP / 8; eight++) {
            const int16x8_t integers = eight_integers(from + 8 * eight, scale_of.factor);
            sum = vpadalq_s16(sum, integers);
            groups_[at].set(eight, integers);
        }
        offsets[at] = -8 * vaddvq_s32(sum);
        scales[at] = scale_of.scale;
    }
};

// To four outputs of a panel add the sum of a group, and `offset`, times its scales.
inline void add_group(float* to, int32x4_t sum, int32_t offset, const uint8_t* scales, float x_scale) {
    const float32x4_t scale = vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(scales)));
    const float32x4_t value = vcvtq_f32_s32(vaddq_s32(sum, vdupq_n_s32(offset)));
    vst1q_f32(to, vfmaq_f32(vld1q_f32(to), value, vmulq_n_f32(scale, x_scale)));
}

#if defined(VL2_NEON_DOTPROD)

constexpr int INT4_ROW_TILE = 4;  // rows of inputs at a time: 8 registers of sums

// The codes of four outputs and eight inputs, and the sums of their products with a row's bytes.
#if defined(VL2_NEON_BF16)

struct FourCodes {
    int8x16_t first, last;  // of two outputs each

    explicit FourCodes(uint8x16_t words) {
        const uint32x4_t even = vreinterpretq_u32_u8(vandq_u8(words, vdupq_n_u8(15)));
        const uint32x4_t odd = vreinterpretq_u32_u8(vshrq_n_u8(words, 4));
        first = vreinterpretq_s8_u32(vzip1q_u32(even, odd));
        last = vreinterpretq_s8_u32(vzip2q_u32(even, odd));
    }
};

struct FourSums {
    int32x4_t first = vdupq_n_s32(0), last = vdupq_n_s32(0);  // of high bytes with two outputs, then of low ones

    void add(const int8_t* eight, const FourCodes& codes) {
        const int8x16_t bytes = vld1q_s8(eight);
        first = vmmlaq_s32(first, bytes, codes.first);
        last = vmmlaq_s32(last, bytes, codes.last);
    }
    int32x4_t total() const {
        const int64x2_t one = vreinterpretq_s64_s32(first), two = vreinterpretq_s64_s32(last);
        const int32x4_t high = vreinterpretq_s32_s64(vuzp1q_s64(one, two));
        return vaddq_s32(vshlq_n_s32(high, 8), vreinterpretq_s32_s64(vuzp2q_s64(one, two)));
    }
};

#else

struct FourCodes {
    int8x16_t even, odd;

    explicit FourCodes(uint8x16_t words)
        : even(vreinterpretq_s8_u8(vandq_u8(words, vdupq_n_u8(15)))),
          odd(vreinterpretq_s8_u8(vshrq_n_u8(words, 4))) {}
};

struct FourSums {
    int32x4_t high = vdupq_n_s32(0), low = vdupq_n_s32(0);

    void add(const int8_t* eight, const FourCodes& codes) {
        const int8x16_t bytes = vld1q_s8(eight);
        high = vdotq_laneq_s32(vdotq_laneq_s32(high, codes.even, bytes, 0), codes.odd, bytes, 1);
        low = vdotq_laneq_s32(vdotq_laneq_s32(low, codes.even, bytes, 2), codes.odd, bytes, 3);
    }
    int32x4_t total() const { return vaddq_s32(vshlq_n_s32(high, 8), low); }
};

#endif

// Sixteen outputs of M rows from `row` on. Not inlined: the compiler would look up at each step where the thread keeps
// the rows.
template <int M>
__attribute__((noinline)) void int4_microkernel(const uint8_t* codes, const uint8_t* scales, int64_t groups, const Int16Groups& x,
                             int64_t row, float (*out)[PANEL]) {
    std::fill_n(out[0], M * PANEL, 0.0f);
    for (int64_t g = 0; g < groups; g++, codes += BLOCK_BYTES, scales += 2 * PANEL)
        for (int four = 0; four < 4; four++) {
            FourSums sums[M];
#pragma GCC unroll 4
            for (int eight = 0; eight < 4; eight++) {
                const FourCodes some(vld1q_u8(codes + 64 * eight + 16 * four));
#pragma GCC unroll 4
                for (int m = 0; m < M; m++) sums[m].add(x[(row + m) * groups + g].eights[eight], some);
            }
#pragma GCC unroll 4
            for (int m = 0; m < M; m++) {
                const int64_t at = (row + m) * groups + g;
                add_group(out[m] + 4 * four, sums[m].total(), x.offsets[at], scales + 8 * four, x.scales[at]);
            }
        }
}

#else

constexpr int INT4_ROW_TILE = 4;  // rows of inputs at a time: 8 registers of sums

// Inputs 2J and 2J + 1 of eight, of which `even` and `odd` hold the codes of eight outputs, times M rows.
template <int J, int M>
inline void add_two_inputs(uint16x8_t even, uint16x8_t odd, const int16x8_t (&x)[M], int32x4_t (&sums)[M][2]) {
    const int16x8_t a = vreinterpretq_s16_u16((even >> 4 * J) & 15), b = vreinterpretq_s16_u16((odd >> 4 * J) & 15);
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) {
        sums[m][0] = vmlal_laneq_s16(sums[m][0], vget_low_s16(a), x[m], 2 * J);
        sums[m][1] = vmlal_high_laneq_s16(sums[m][1], a, x[m], 2 * J);
        sums[m][0] = vmlal_laneq_s16(sums[m][0], vget_low_s16(b), x[m], 2 * J + 1);
        sums[m][1] = vmlal_high_laneq_s16(sums[m][1], b, x[m], 2 * J + 1);
    }
}

// Sixteen outputs of M rows from `row` on. Not inlined: the compiler would look up at each step where the thread keeps
// the rows.
template <int M>
__attribute__((noinline)) void int4_microkernel(const uint8_t* codes, const uint8_t* scales, int64_t groups, const Int16Groups& x,
                             int64_t row, float (*out)[PANEL]) {
    std::fill_n(out[0], M * PANEL, 0.0f);
    for (int64_t g = 0; g < groups; g++, codes += BLOCK_BYTES, scales += 2 * PANEL)
        for (int half = 0; half < 2; half++) {
            int32x4_t sums[M][2] = {};
            for (int eight = 0; eight < 4; eight++) {
                // A word is an output; its low and its high half hold four even and four odd inputs.
                const uint16x8_t first = vreinterpretq_u16_u8(vld1q_u8(codes + 64 * eight + 32 * half));
                const uint16x8_t last = vreinterpretq_u16_u8(vld1q_u8(codes + 64 * eight + 32 * half + 16));
                const uint16x8_t even = vuzp1q_u16(first, last), odd = vuzp2q_u16(first, last);
                int16x8_t inputs[M];
#pragma GCC unroll 4
                for (int m = 0; m < M; m++) inputs[m] = vld1q_s16(x[(row + m) * groups + g].eights[eight]);
                add_two_inputs<0>(even, odd, inputs, sums);
                add_two_inputs<1>(even, odd, inputs, sums);
                add_two_inputs<2>(even, odd, inputs, sums);
                add_two_inputs<3>(even, odd, inputs, sums);
            }
#pragma GCC unroll 4
            for (int m = 0; m < M; m++) {
                const int64_t at = (row + m) * groups + g;
#pragma GCC unroll 2
                for (int i = 0; i < 2; i++) {
                    const int four = 2 * half + i;
                    add_group(out[m] + 4 * four, sums[m][i], x.offsets[at], scales + 8 * four, x.scales[at]);
                }
            }
        }
}

#endif

// Outputs first to last of M rows.
inline void multiply_int4(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x,
                          float* const* out) {
    static thread_local Int16Groups rows;
    const int64_t groups = w.groups();
    rows.quantize(x, M, groups);
    for (int64_t n = first; n < last; n += PANEL) {
        const int64_t block = n / PANEL * groups;
        const uint8_t *codes = w.codes + block * BLOCK_BYTES, *scales = w.scales + block * PANEL * 2;
        for (int m = 0; m < M; m += INT4_ROW_TILE)
            with_constant<INT4_ROW_TILE>(std::min(INT4_ROW_TILE, M - m), [&](auto count) {
                float results[count.value][PANEL];
                int4_microkernel<count.value>(codes, scales, groups, rows, m, results);
                for (int i = 0; i < count.value; i++)
                    std::copy_n(results[i], std::min(PANEL, last - n), out[m + i] + n - first);
            });
    }
}

#if defined(VL2_NEON_DOTPROD)

// Rows of activations as pairs of bytes, each by its own largest.
class Int16Rows {
   public:
    std::vector<float> scales;  // of each row

    // Rows of bfloat16 with zeros up to a multiple of 32 behind their `inputs`.
    void quantize(const bf16* const* x, int rows, int64_t inputs) {
        width_ = padded(inputs);
        bytes_.resize(std::max<size_t>(bytes_.size(), 2 * rows * width_));
        scales.resize(rows);
        for (int row = 0; row < rows; row++) {
            const uint32_t largest = bit_cast<uint32_t>(largest_magnitude(x[row], width_)) >> 16;
            const PowerScale scale_of = power_scale(largest);
            int8_t *high = bytes_.data() + 2 * row * width_, *low = high + width_;
            for (int64_t k = 0; k < width_; k += 8) {
                const int16x8_t integers = eight_integers(x[row] + k, scale_of.factor);
                vst1_s8(high + k, vrshrn_n_s16(integers, 8));
                vst1_s8(low + k, vmovn_s16(integers));
            }
            scales[row] = scale_of.scale;
        }
    }

    // The high bytes of a row are an even number, the low ones the next.
    const uint8_t* at(int64_t half) const { return reinterpret_cast<const uint8_t*>(bytes_.data()) + half * width_; }

   private:
    int64_t width_ = 0;
    std::vector<int8_t> bytes_;
};

// Outputs first to last of M rows. Both bytes of a row are one pair.
inline void multiply_int8(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x,
                          float* const* out) {
    static thread_local Int16Rows kept;
    static thread_local PackedPairs<Int8Product> pairs;
    Int16Rows& rows = kept;
    rows.quantize(x, M, w.inputs);
    pairs.pack(2 * M, w.inputs, [&](int64_t half) { return rows.at(half); });
    const float* scales = reinterpret_cast<const float*>(w.scales) + first;
    pairs.multiply(w.codes + first * w.inputs, w.inputs, last - first, [&](int64_t m, int64_t n, int32x4_t sums) {
        // In 64 bits: long rows need more than 32. A double holds the sum, so it is rounded once.
        const int64x2_t total =
            vaddq_s64(vshll_n_s32(vget_low_s32(sums), 8), vmovl_s32(vget_high_s32(sums)));
        float two[2];
        vst1_f32(two, vcvt_f32_f64(vcvtq_f64_s64(total)));
        for (int64_t i = 0; i < std::min<int64_t>(2, last - first - n); i++)
            out[m][n + i] = two[i] * scales[n + i] * rows.scales[m];
    });
}

#endif

}  // namespace vl2
