// Which instruction set this library is compiled for, and whether the processor has it.
//
// In: the compiler's own macros, set by the flags of a level of vl2/kernels/build.py. Out: at most one of VL2_AVX2 and
// VL2_AVX512, and VL2_AMX beside the latter; with none of them the code is portable. Every other header asks for these
// macros alone, and only to choose which file to include: NAME.h holds the interface and what is portable, NAME_avx2.h,
// NAME_avx512.h and NAME_amx.h the intrinsics. `is_supported` is asked once by kernels.cpp when Python opens the
// library.
#pragma once

// A level is all of its extensions or none: a processor with AVX-512 and no bfloat16 products runs the AVX2 code.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && \
    defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define VL2_AVX512
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define VL2_AVX2
#endif
#if defined(VL2_AVX512) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define VL2_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vl2 {

#if defined(VL2_AVX512)
constexpr bool HAS_AVX512 = true;
#else
constexpr bool HAS_AVX512 = false;
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
#else
    return true;
#endif
}

}  // namespace vl2
