// A team of threads that walks through the phases of one call together: dynamic tasks, then a barrier.
//
// In: a number of threads and the work. Out: nothing; all of it is done when a call returns. `parallel_for` and
// `parallel_rows` are one phase, for single kernels; `run_team` is for calls of many phases (decode.h) or with state
// per thread (gemm_amx.h). The threads are those of the OpenMP runtime that PyTorch has loaded, so that two pools never
// spin against each other; where there is none, each call starts its own. Tasks are taken in any order, so no task may
// depend on another of its phase, and no result on which thread had it.
#pragma once
#include <dlfcn.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace vl2 {

inline void pause_cpu() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Wait a little: a spin for as long as a phase may last on an idle machine; then the core goes to whoever else wants
// it, which may be the thread that is waited for.
inline void wait_briefly(int& spins) {
    if (spins++ < 2000) pause_cpu();
    else sched_yield();
}

class Team {
   public:
    explicit Team(int size) : size(size) {}
    const int size;

    // Give out the tasks of this phase one after another, and return when all threads have done theirs.
    template <class Work>
    void each(int64_t tasks, int& phase, const Work& work) {
        std::atomic<int64_t>& next = counters_[phase & 1].value;
        for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) work(task);
        barrier(phase);
    }

   private:
    // A line of the cache each: what all threads add to must not take the line that waiting ones read.
    struct alignas(64) Counter {
        std::atomic<int64_t> value{0};
    };

    // The last to arrive clears the next phase's counter, which nobody reads any more: all have left the phase that
    // used it last. Then it opens the next round. The acq_rel of arriving and the release of the round make what any
    // thread wrote in this phase visible to all in the next.
    void barrier(int& phase) {
        const int64_t round = round_.value.load(std::memory_order_relaxed);
        if (arrived_.value.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
            arrived_.value.store(0, std::memory_order_relaxed);
            counters_[(phase + 1) & 1].value.store(0, std::memory_order_relaxed);
            round_.value.store(round + 1, std::memory_order_release);
        } else {
            for (int spins = 0; round_.value.load(std::memory_order_acquire) == round;) wait_briefly(spins);
        }
        phase++;
    }

    Counter counters_[2];      // next task of this phase and of the one after it
    Counter arrived_, round_;  // threads at the barrier; how many barriers were passed
};

// The entry points of the OpenMP runtime that PyTorch has loaded, by the names of GNU's, which LLVM's and Intel's have
// too.
struct OpenMP {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
    int (*thread_num)() = nullptr;
    int (*num_threads)() = nullptr;

    bool open(const char* path) {
        void* handle = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
        if (!handle) return false;
        parallel = reinterpret_cast<decltype(parallel)>(dlsym(handle, "GOMP_parallel"));
        thread_num = reinterpret_cast<decltype(thread_num)>(dlsym(handle, "omp_get_thread_num"));
        num_threads = reinterpret_cast<decltype(num_threads)>(dlsym(handle, "omp_get_num_threads"));
        if (!thread_num || !num_threads) parallel = nullptr;
        return parallel != nullptr;
    }
};

inline OpenMP openmp;

// As many threads as pay: one where there is so little to read and to multiply (256 KB, four million products) that a
// second would take as long to come.
inline int useful_threads(int threads, int64_t bytes, int64_t products) {
    return bytes < 1 << 18 && products < 1 << 22 ? 1 : threads;
}

// Run `body(team, id)` on a team of at most `threads` threads, the caller among them.
template <class Body>
void run_team(int threads, const Body& body) {
    if (threads <= 1) {
        Team team(1);
        body(team, 0);
        return;
    }
    if (openmp.parallel) {
        struct Call {
            const Body* body;
            std::atomic<Team*> team{nullptr};
        } call{&body};
        // The runtime may give fewer threads than asked for: the first of them makes the team of as many as there are,
        // and the others wait for it.
        auto enter = [](void* data) {
            Call& call = *static_cast<Call*>(data);
            const int id = openmp.thread_num();
            if (id == 0) call.team.store(new Team(openmp.num_threads()), std::memory_order_release);
            Team* team;
            for (int spins = 0; !(team = call.team.load(std::memory_order_acquire));) wait_briefly(spins);
            (*call.body)(*team, id);
        };
        openmp.parallel(enter, &call, static_cast<unsigned>(threads), 0);
        delete call.team.load();
        return;
    }
    Team team(threads);
    std::vector<std::thread> others;
    for (int id = 1; id < threads; id++) others.emplace_back([&team, &body, id] { body(team, id); });
    body(team, 0);
    for (std::thread& other : others) other.join();
}

// Run `work(task)` for tasks 0 to `tasks` on a team; returns when all are done.
template <class Work>
void parallel_for(int64_t tasks, int threads, const Work& work) {
    run_team(threads, [&](Team& team, int) {
        int phase = 0;
        team.each(tasks, phase, work);
    });
}

// Run `work(row)` for all rows, `at_once` of them a task.
template <class Work>
void parallel_rows(int64_t rows, int64_t at_once, int threads, const Work& work) {
    parallel_for((rows + at_once - 1) / at_once, threads, [&](int64_t task) {
        for (int64_t row = task * at_once; row < std::min(rows, (task + 1) * at_once); row++) work(row);
    });
}

}  // namespace vl2
