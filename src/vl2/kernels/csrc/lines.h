// Memory that begins on a line of the cache. A vector or a row of a tile that lies across two lines takes twice as long.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace vl2 {

constexpr std::size_t LINE_BYTES = 64;

struct alignas(LINE_BYTES) Line {
    uint32_t words[16];
};

#if defined(__AVX512F__)
// To memory that will not be read before much else is: its line is not read first, where the vector is all of it.
inline void store_past_caches(void* to, __m512i value) {
    if (reinterpret_cast<uintptr_t>(to) % LINE_BYTES) _mm512_storeu_si512(to, value);
    else _mm512_stream_si512(static_cast<__m512i*>(to), value);
}
#endif

// Numbers that nobody has written yet, from the beginning of a line of the cache on.
template <class T>
class UninitializedBuffer {
   public:
    explicit UninitializedBuffer(int64_t count) : lines_(new Line[(count * sizeof(T) + LINE_BYTES - 1) / LINE_BYTES]) {}
    T* data() const { return reinterpret_cast<T*>(lines_.get()); }

   private:
    std::unique_ptr<Line[]> lines_;
};

template <class T>
struct AlignedAllocator {
    using value_type = T;

    AlignedAllocator() = default;
    template <class U>
    AlignedAllocator(const AlignedAllocator<U>&) {}

    T* allocate(std::size_t count) {
        return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(LINE_BYTES)));
    }
    void deallocate(T* at, std::size_t) { ::operator delete(at, std::align_val_t(LINE_BYTES)); }

    template <class U>
    bool operator==(const AlignedAllocator<U>&) const { return true; }
    template <class U>
    bool operator!=(const AlignedAllocator<U>&) const { return false; }
};

template <class T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

}  // namespace vl2
