#include "ops/hadamard.h"

#include <cmath>

namespace asx {

namespace {

// Sums and differences of neighbours, then of neighbouring pairs: two steps at a time, for lanes to fill.
void first_steps(float* x, int64_t size) {
    for (int64_t i = 0; i < size; i += 4) {
        const float a = x[i] + x[i + 1], b = x[i] - x[i + 1], c = x[i + 2] + x[i + 3], d = x[i + 2] - x[i + 3];
        x[i] = a + c, x[i + 1] = b + d, x[i + 2] = a - c, x[i + 3] = b - d;
    }
}

void step(float* __restrict low, float* __restrict high, int64_t half) {
    for (int64_t j = 0; j < half; ++j) {
        const float sum = low[j] + high[j];
        high[j] = low[j] - high[j];
        low[j] = sum;
    }
}

}  // namespace

void hadamard(float* rows, int64_t stride, int64_t count, int64_t size) {
    const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(size)));
    for (int64_t r = 0; r < count; ++r) {
        float* x = rows + r * stride;
        int64_t half = 1;
        if (size >= 4) first_steps(x, size), half = 4;
        for (; half < size; half *= 2)
            for (int64_t i = 0; i < size; i += 2 * half) step(x + i, x + i + half, half);
        for (int64_t i = 0; i < size; ++i) x[i] *= scale;
    }
}

}  // namespace asx
