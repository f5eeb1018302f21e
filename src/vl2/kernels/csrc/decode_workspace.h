// What a decode step works with: padded rows of activations, outputs of `multiply`, and the outputs of weights cut into
// tasks.
//
// In: widths, and the bytes that an output's weights take. Out: buffers and a list of tasks. Used by decode.h,
// decode_attention.h and decode_mlp.h. Activations are bfloat16 rows, rounded wherever the plain model rounds.
#pragma once
#include <algorithm>
#include <vector>

#include "matmul.h"

namespace vl2 {

// Rows of bfloat16 whose length is filled up to a multiple of 32 with zeros.
class PaddedRows {
   public:
    void resize(int64_t rows, int64_t width) {
        width_ = padded(width);
        values_.assign(rows * width_, 0);
    }
    bf16* operator[](int64_t row) { return values_.data() + row * width_; }

   private:
    int64_t width_ = 0;
    std::vector<bf16> values_;
};

// The outputs of a product as floats, and the pointers that `multiply` takes.
class MatmulOutputs {
   public:
    // Multiply outputs first to last for the rows at `inputs()`, which must be set before. The buffers only grow: a
    // thread keeps them from one task to the next.
    void run(const Matrix& w, int64_t first, int64_t last) {
        const int64_t rows = static_cast<int64_t>(inputs_.size()), count = last - first;
        values_.resize(std::max<int64_t>(values_.size(), rows * count));
        outputs_.resize(rows);
        for (int64_t m = 0; m < rows; m++) outputs_[m] = values_.data() + m * count;
        multiply(w, first, last, static_cast<int>(rows), inputs_.data(), outputs_.data());
    }
    std::vector<const bf16*>& inputs() { return inputs_; }
    const float* operator[](int64_t row) const { return outputs_[row]; }

   private:
    std::vector<const bf16*> inputs_;
    std::vector<float*> outputs_;
    std::vector<float> values_;
};

// The outputs of the matrices of one phase, split into tasks.
//
// What a task reads should be one long stream: the processor takes some hundred kilobytes to reach its full speed. So
// the first tasks are large, and they get smaller towards the end, for all threads to be done at the same time: each is
// half of a thread's share of what is left, a megabyte at most, and whole panels, for a task may not split one.
class OutputTasks {
   public:
    struct Task {
        int64_t matrix, first, last;
    };

    void clear() {
        tasks_.clear();
        pending_.clear();
        bytes_left_ = 0;
    }
    // `matrix` is any number that tells a task which weight is meant; `bytes` is what one output reads.
    void add(int64_t matrix, int64_t outputs, int64_t bytes) {
        pending_.push_back({matrix, outputs, bytes});
        bytes_left_ += outputs * bytes;
    }
    void split(int64_t threads) {
        for (const Pending& w : pending_) {
            for (int64_t n = 0; n < w.outputs;) {
                const int64_t share = std::min(LARGEST, bytes_left_ / (2 * threads)) / std::max<int64_t>(w.bytes, 1);
                const int64_t last = std::min(w.outputs, n + std::max(PANEL, share / PANEL * PANEL));
                tasks_.push_back({w.matrix, n, last});
                bytes_left_ -= (last - n) * w.bytes;
                n = last;
            }
        }
    }
    const Task& operator[](int64_t task) const { return tasks_[task]; }
    int64_t size() const { return static_cast<int64_t>(tasks_.size()); }

   private:
    static constexpr int64_t LARGEST = 1 << 20;
    struct Pending {
        int64_t matrix, outputs, bytes;
    };
    std::vector<Pending> pending_;
    std::vector<Task> tasks_;
    int64_t bytes_left_ = 0;
};

}  // namespace vl2
