// What tile registers (AMX) give when nothing but products is asked of them, second after second: the limit that no
// product can pass, and whether the processor holds it. Some give a quarter for seconds or hours, presumably when
// others are busy on the same machine, while other instructions take as long as ever.
//
//   c++ -O2 -march=sapphirerapids -pthread benchmarks/tile_rate.cpp -o tile_rate && ./tile_rate 2 20
//
// Arguments: threads, and how many times each is measured. Prints trillion operations a second, of all threads, with tiles
// of random numbers that lie in the first cache, and the time of one of AVX-512's products after another, in nanoseconds.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

struct alignas(64) Shape {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

constexpr long TURNS = 500000, PRODUCTS = 4 * TURNS;

// They begin on a line of the cache: a row of a tile that lies across two takes twice as long.
struct alignas(64) Tiles {
    char bytes[4 * 4096];
};

template <bool WHOLE>
void multiply(const char* tiles) {
    const Shape shape;
    _tile_loadconfig(&shape);
    for (long turn = 0; turn < TURNS; turn++) {
        const char* at = tiles + (turn & 3) * 4096;
        _tile_loadd(4, at, 64);
        _tile_loadd(5, at + 1024, 64);
        _tile_loadd(6, at + 2048, 64);
        _tile_loadd(7, at + 3072, 64);
        if constexpr (WHOLE) {
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 5, 6);
            _tile_dpbssd(2, 4, 7);
            _tile_dpbssd(3, 5, 7);
        } else {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 5, 6);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_release();
}

template <class Work>
double seconds(const Work& work) {
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

template <bool WHOLE>
double rate(int threads, const Tiles& tiles) {
    const double took = seconds([&] {
        std::vector<std::thread> team;
        for (int i = 0; i < threads; i++) team.emplace_back(multiply<WHOLE>, tiles.bytes);
        for (std::thread& thread : team) thread.join();
    });
    return 2.0 * 16 * 16 * (WHOLE ? 64 : 32) * PRODUCTS * threads / took / 1e12;
}

double vector_ns() {
    constexpr long STEPS = 8000000;
    __m512 sum = _mm512_set1_ps(1.0f);
    const __m512 factor = _mm512_set1_ps(0.999f);
    const double took = seconds([&] {
        for (long step = 0; step < STEPS; step++) sum = _mm512_fmadd_ps(sum, factor, factor);
    });
    volatile float kept = _mm512_reduce_add_ps(sum);
    (void)kept;
    return took / STEPS * 1e9;
}

int main(int count, char** arguments) {
    const int threads = count > 1 ? std::atoi(arguments[1]) : 1, times = count > 2 ? std::atoi(arguments[2]) : 10;
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;
    if (threads < 1 || times < 1 || syscall(SYS_arch_prctl, REQUEST, TILE_DATA) != 0) {
        std::fprintf(stderr, "usage: tile_rate THREADS TIMES, both at least 1, on a processor with AMX\n");
        return 1;
    }
    static Tiles tiles;
    std::mt19937 random(0);
    // Numbers from 1/2 to 1 as bfloat16; as int8 any.
    for (size_t i = 0; i < sizeof tiles.bytes; i += 2) {
        tiles.bytes[i] = static_cast<char>(random() & 0x7f);
        tiles.bytes[i + 1] = 0x3f;
    }
    std::printf("  s    bfloat16   int8   a product of AVX-512\n");
    double since = 0;
    for (int i = 0; i < times; i++) {
        double floats = 0, whole = 0, vector = 0;
        since += seconds([&] {
            floats = rate<false>(threads, tiles);
            whole = rate<true>(threads, tiles);
            vector = vector_ns();
        });
        std::printf("%5.1f  %5.2f    %5.2f    %4.2f ns\n", since, floats, whole, vector);
    }
}
