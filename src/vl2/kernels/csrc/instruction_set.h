// Which instruction set this library is compiled for, and whether the processor has it.
//
// In: the compiler's own macros, set by the flags of a level of vl2/kernels/build.py. Out: at most one of VL2_AVX2,
// VL2_AVX512 and VL2_NEON; VL2_AMX beside the second, and VL2_NEON_DOTPROD and VL2_NEON_BF16 beside the third. With none
// of them the code is portable. Every other header asks for these macros alone, and only to choose which file to
// include: NAME.h holds the interface and what is portable, NAME_avx2.h, NAME_avx512.h, NAME_amx.h and NAME_neon.h the
// intrinsics. `is_supported` is asked once by kernels.cpp when Python opens the library.
#pragma once

// A level is all of its extensions or none: a processor with AVX-512 and no bfloat16 products runs the AVX2 code. NEON
// is part of every 64-bit ARM processor, so only the macro VL2_PORTABLE keeps it out.
#if defined(VL2_PORTABLE)
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && \
    defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define VL2_AVX512
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define VL2_AVX2
#elif defined(__aarch64__) && defined(__ARM_NEON) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define VL2_NEON
#endif
#if defined(VL2_AVX512) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define VL2_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(VL2_NEON) && defined(__ARM_FEATURE_DOTPROD)
#define VL2_NEON_DOTPROD
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && defined(__ARM_FEATURE_MATMUL_INT8)
#define VL2_NEON_BF16
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#else
#include <sys/auxv.h>
#endif
#endif

namespace vl2 {

// Dot products of bfloat16 numbers in one instruction.
#if defined(VL2_AVX512) || defined(VL2_NEON_BF16)
constexpr bool HAS_BF16_PRODUCTS = true;
#else
constexpr bool HAS_BF16_PRODUCTS = false;
#endif

// `attend_many` has a kernel.
#if defined(VL2_AVX512) || defined(VL2_NEON)
constexpr bool HAS_ATTENTION = true;
#else
constexpr bool HAS_ATTENTION = false;
#endif

// Instructions for many rows in bfloat16 and in int8: `multiply_many_rows` has a kernel.
#if defined(VL2_AVX512) || defined(VL2_NEON_BF16)
constexpr bool HAS_ROW_PRODUCTS = true;
#else
constexpr bool HAS_ROW_PRODUCTS = false;
#endif

#if defined(VL2_AMX)
constexpr bool HAS_TILES = true;

// Linux gives the tile registers to a process that asks for them, and to all its threads from then on. Without this
// call the first tile instruction ends the process.
inline bool may_use_tiles() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // of arch_prctl: ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool is_granted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return is_granted;
}
#else
constexpr bool HAS_TILES = false;
#endif

#if defined(VL2_NEON_DOTPROD)
// Whether the processor has an extension: by its name on macOS, elsewhere by a bit of a word that Linux tells a process.
inline bool has_extension([[maybe_unused]] const char* name, [[maybe_unused]] unsigned long word,
                          [[maybe_unused]] int bit) {
#if defined(__APPLE__)
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value == 1;
#else
    return getauxval(word) >> bit & 1;
#endif
}
#endif

inline bool is_supported() {
#if defined(VL2_AMX)
    if (!may_use_tiles()) return false;
#endif
#if defined(VL2_AVX512)
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
#elif defined(VL2_AVX2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#elif defined(VL2_NEON_DOTPROD)
    constexpr unsigned long HWCAP = 16, HWCAP2 [[maybe_unused]] = 26;  // the keys of Linux's two words of bits
#if defined(VL2_NEON_BF16)
    if (!has_extension("hw.optional.arm.FEAT_I8MM", HWCAP2, 13)) return false;
    if (!has_extension("hw.optional.arm.FEAT_BF16", HWCAP2, 14)) return false;
#endif
    return has_extension("hw.optional.arm.FEAT_DotProd", HWCAP, 20);
#else
    return true;
#endif
}

}  // namespace vl2
