// Walsh-Hadamard transforms, of which random rotations are made.
#pragma once

#include <cstdint>

namespace asx {

// Every row replaced by its normalised transform: see backends/protocol.py. stride: floats from row to row; size: a power of two.
void hadamard(float* rows, int64_t stride, int64_t count, int64_t size);

}  // namespace asx
