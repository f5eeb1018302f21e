// Products of a few rows with an int4 weight, in integers, with AVX-512.
//
// Each group of 32 activations becomes integers by its own largest, see int16_activations.h. Codes are multiplied as they
// are, 8 more than the weights, which the sums of a group begin without. Those sums are exact; a row's result depends on
// that row alone.
#pragma once
#include <algorithm>
#include <vector>

#include "lines.h"
#include "int16_activations.h"

namespace vl2 {

constexpr int PANEL_TILE = 8;  // rows of inputs at a time

// One group of a row. Bytes lie as `panel` meets the codes: of each eight inputs first 0, 4, 1, 5, then 2, 6, 3, 7.
struct alignas(LINE_BYTES) GroupOfRow {
    int8_t high[GROUP], low[GROUP];
};

// Rows by groups.
class GroupsOfRows {
   public:
    std::vector<float> scales;       // [rows, groups]
    std::vector<int32_t> no_eights;  // [rows, groups], minus eight times the sum of the group

    void take(const bf16* const* x, int rows, int64_t groups) {
        const size_t count = rows * groups;
        if (scales.size() < count) {
            scales.resize(count);
            no_eights.resize(count);
            groups_.resize(count);
        }
        for (int row = 0; row < rows; row++)
            for (int64_t g = 0; g < groups; g++) take_group(x[row] + g * GROUP, row * groups + g);
    }
    const GroupOfRow& operator[](int64_t at) const { return groups_[at]; }

   private:
    AlignedVector<GroupOfRow> groups_;

    static uint32_t largest_of(__m512i magnitudes) {
        const __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(magnitudes), _mm512_extracti64x4_epi64(magnitudes, 1));
        const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
        const __m128i turned = _mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1)));
        return 0xffff ^ static_cast<uint16_t>(_mm_cvtsi128_si32(turned));
    }

    void take_group(const bf16* from, int64_t at) {
        const __m512i halves = _mm512_loadu_si512(from);
        const Fitted fit = fitted(largest_of(_mm512_and_si512(halves, _mm512_set1_epi16(0x7fff))));
        const __m512 factor = _mm512_set1_ps(fit.factor);
        const auto whole = [&](__m256i some) {
            const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(some), 16);
            return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(wide), factor));
        };
        const __m512i first = whole(_mm512_castsi512_si256(halves)), second = whole(_mm512_extracti64x4_epi64(halves, 1));
        const auto bytes = [](__m512i one, __m512i two) {
            const __m256i order = _mm256_broadcastsi128_si256(
                _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
            return _mm256_shuffle_epi8(_mm256_set_m128i(_mm512_cvtepi32_epi8(two), _mm512_cvtepi32_epi8(one)), order);
        };
        GroupOfRow& to = groups_[at];
        _mm256_store_si256((__m256i*)to.high, bytes(high_bytes(first), high_bytes(second)));
        _mm256_store_si256((__m256i*)to.low, bytes(first, second));
        no_eights[at] = -8 * _mm512_reduce_add_epi32(_mm512_add_epi32(first, second));
        scales[at] = fit.scale;
    }
};

// Sixteen outputs of M rows from `row` on. Memory is asked for what comes next evenly between the products: four lines at once
// cost a sixth of the speed.
template <int M>
inline void panel(const uint8_t* codes, const uint8_t* scales, int64_t groups, const GroupsOfRows& x, int64_t row,
                  __m512* out, Prefetch& prefetch) {
    const __m512i lowest = _mm512_set1_epi8(15);
    for (int m = 0; m < M; m++) out[m] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
        __m512i high[M], low[M];
        for (int m = 0; m < M; m++) {
            high[m] = _mm512_setzero_si512();
            low[m] = _mm512_set1_epi32(x.no_eights[(row + m) * groups + g]);
        }
        for (int v = 0; v < 4; v++) {
            if (v < prefetch.lines) prefetch.line();
            const __m512i words = _mm512_loadu_si512(codes + g * BLOCK_BYTES + v * 64);
            for (int odd = 0; odd < 2; odd++) {
                const __m512i four = _mm512_and_si512(odd ? _mm512_srli_epi16(words, 4) : words, lowest);
                for (int m = 0; m < M; m++) {
                    const GroupOfRow& from = x[(row + m) * groups + g];
                    int32_t upper, lower;
                    std::memcpy(&upper, from.high + 8 * v + 4 * odd, 4);
                    std::memcpy(&lower, from.low + 8 * v + 4 * odd, 4);
                    high[m] = _mm512_dpbusd_epi32(high[m], four, _mm512_set1_epi32(upper));
                    low[m] = _mm512_dpbusd_epi32(low[m], four, _mm512_set1_epi32(lower));
                }
            }
        }
        const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(scales + g * PANEL * 2)));
        for (int m = 0; m < M; m++) {
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high[m], 8), low[m]));
            out[m] = _mm512_fmadd_ps(sum, _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[(row + m) * groups + g])), out[m]);
        }
    }
}

// Outputs first to last of M rows.
inline void multiply_panels(const Matrix& w, int64_t first, int64_t last, int M, const bf16* const* x, float* const* out) {
    static thread_local GroupsOfRows rows;
    const int64_t groups = w.groups();
    rows.take(x, M, groups);
    const int num_tiles = (M + PANEL_TILE - 1) / PANEL_TILE;
    for (int64_t n = first; n < last; n += PANEL) {
        const uint8_t* codes = w.codes + n / PANEL * groups * BLOCK_BYTES;
        const uint8_t* scales = w.scales + n / PANEL * groups * PANEL * 2;
        const __mmask16 kept = last - n < PANEL ? static_cast<__mmask16>((1u << (last - n)) - 1) : 0xffff;
        Prefetch prefetch{codes + PREFETCH_BYTES, (4 + num_tiles - 1) / num_tiles};
        for (int m = 0; m < M; m += PANEL_TILE) {
            const int count = std::min(PANEL_TILE, M - m);
            __m512 results[PANEL_TILE];
            switch (count) {
                case 1: panel<1>(codes, scales, groups, rows, m, results, prefetch); break;
                case 2: panel<2>(codes, scales, groups, rows, m, results, prefetch); break;
                case 3: panel<3>(codes, scales, groups, rows, m, results, prefetch); break;
                case 4: panel<4>(codes, scales, groups, rows, m, results, prefetch); break;
                case 5: panel<5>(codes, scales, groups, rows, m, results, prefetch); break;
                case 6: panel<6>(codes, scales, groups, rows, m, results, prefetch); break;
                case 7: panel<7>(codes, scales, groups, rows, m, results, prefetch); break;
                default: panel<8>(codes, scales, groups, rows, m, results, prefetch); break;
            }
            for (int i = 0; i < count; i++) _mm512_mask_storeu_ps(out[m + i] + n - first, kept, results[i]);
        }
    }
}

}  // namespace vl2
