// Prefetching memory into the second cache before it is needed.
#pragma once
#if defined(__AVX512F__)
#include <immintrin.h>

#include <cstdint>

namespace vl2 {

// `lines` of 64 bytes a step, one behind another: for what is read at the memory's own speed.
struct Prefetch {
    const uint8_t* next;
    int lines;

    void step() {
        for (int i = 0; i < lines; i++) line();
    }
    void line() {
        _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T1);
        next += 64;
    }
};

// Some lines at each of so many steps, in turn from several places of one stretch: for what is read beside products. Their tiles
// come from the second cache, and wait in the same few places as a line from memory that was asked for. But a processor foresees
// streams, and fetches what comes next in each by itself, without such a place; of several it is there when it is asked for,
// of one it is still on its way.
class StreamPrefetch {
   public:
    StreamPrefetch() = default;
    StreamPrefetch(const uint8_t* from, int64_t lines, int64_t steps)
        : StreamPrefetch(from, STREAMS, lines / STREAMS * 64, lines, steps) {}
    // In so many streams, whose beginnings lie `apart` bytes from one another.
    StreamPrefetch(const uint8_t* from, int64_t streams, int64_t apart, int64_t lines, int64_t steps)
        : next_(from), streams_(streams), apart_(apart), left_(lines), a_step_((lines + steps - 1) / steps) {}

    void step() {
        for (int64_t i = 0; i < a_step_ && left_ > 0; i++, left_--) {
            _mm_prefetch(reinterpret_cast<const char*>(next_ + stream_ * apart_), _MM_HINT_T1);
            if (++stream_ < streams_) continue;
            stream_ = 0;
            next_ += 64;
        }
    }

   private:
    static constexpr int64_t STREAMS = 4;

    const uint8_t* next_ = nullptr;
    int64_t streams_ = 0, apart_ = 0, left_ = 0, a_step_ = 0, stream_ = 0;
};

}  // namespace vl2
#endif
