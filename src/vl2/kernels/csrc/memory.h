// Memory that begins on a line of the cache, and lines that are fetched before they are read.
//
// In: a count of numbers. Out: a buffer at a multiple of 64 bytes, with zeros (AlignedVector) or with whatever was
// there (UninitializedBuffer: for what is written before it is read, where clearing would touch each page once more).
// Every kernel whose tiles or vectors read a buffer takes it from here: a vector or a row of a tile that lies across
// two lines takes twice as long. Inputs that come from Python need no alignment.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace vl2 {

constexpr std::size_t LINE_BYTES = 64;

struct alignas(LINE_BYTES) Line {
    uint32_t words[16];
};

// Numbers that nobody has written yet.
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

#if defined(__x86_64__)
// AMD's processors foresee one stream of weights by themselves: with one row of inputs, prefetching it takes up to a
// fifth of the speed.
inline const bool FORESEES_STREAMS = (__builtin_cpu_init(), __builtin_cpu_is("amd"));
#endif

// `lines` of 64 bytes a step, one behind another, into the second cache: for what is read at the memory's own speed.
// Beyond the end of a weight it reads ahead too: a prefetch never faults.
struct Prefetch {
    const uint8_t* next;
    int lines;

    void step() {
        for (int i = 0; i < lines; i++) line();
    }
    void line() {
        __builtin_prefetch(next, 0, 2);
        next += LINE_BYTES;
    }
};

}  // namespace vl2
