// Codewords of one subspace, made ready for the kernels that look for the nearest one.
#pragma once

#include "kernels/table.h"

namespace asx {

constexpr int64_t kTagged = 256; // codewords that the kernels tell apart by their tags; of more they would take every canonical sum

inline int64_t padded_codewords(int64_t codewords) { return (codewords + 15) / 16 * 16; }

// (codewords, dims) to (dims, padded); what pads is left as it is.
void transpose(const float* codebook, int64_t codewords, int64_t dims, int64_t padded, float* out);

// The memory that they take, to be filled with infinity.
inline int64_t prepared_floats(int64_t codewords, int64_t dims) {
    return dims * padded_codewords(codewords) + dims + (codewords + kPqTile - 1) / kPqTile * (dims + 2) * kPqTile;
}

// As seen from the given center, or else from their mean.
PqCodebook prepare_codebook(const float* codebook, int64_t codewords, int64_t dims, const float* given, float* memory);

}  // namespace asx
