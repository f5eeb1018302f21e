// The tile registers of processors with AMX: eight, each of sixteen rows of 64 bytes.
#pragma once
#if defined(__AMX_BF16__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace vl2 {

// Linux gives the registers to a process that asks for them, and to all its threads from then on.
inline bool may_use_tiles() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // of arch_prctl: ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool is_granted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return is_granted;
}

// While it lives, the thread's tile registers are all of sixteen rows of 64 bytes.
struct TileRegisters {
    struct alignas(64) Shape {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    TileRegisters() {
        const Shape shape;
        _tile_loadconfig(&shape);
    }
    ~TileRegisters() { _tile_release(); }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;
};

}  // namespace vl2
#endif
