#include "ops/codeword_tiles.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace asx {

void transpose(const float* codebook, int64_t codewords, int64_t dims, int64_t padded, float* out) {
    for (int64_t s = 0; s < dims; ++s)
        for (int64_t j = 0; j < codewords; ++j) out[s * padded + j] = codebook[j * dims + s];
}

PqCodebook prepare_codebook(const float* codebook, int64_t codewords, int64_t dims, const float* given, float* memory) {
    const int64_t padded = padded_codewords(codewords);
    float *center = memory + dims * padded, *tile = center + dims;
    transpose(codebook, codewords, dims, padded, memory);
    std::vector<double> sums(static_cast<size_t>(dims), 0.0);
    for (int64_t j = 0; j < codewords; ++j)
        for (int64_t s = 0; s < dims; ++s) sums[static_cast<size_t>(s)] += static_cast<double>(codebook[j * dims + s]);
    for (int64_t s = 0; s < dims; ++s)
        center[s] = given ? given[s] : static_cast<float>(sums[static_cast<size_t>(s)] / static_cast<double>(codewords));
    PqCodebook book = {dims, codewords, padded, memory, center, tile, 0.0f};
    double largest = 0.0;
    for (int64_t first = 0; first < codewords; first += kPqTile, tile += (dims + 2) * kPqTile) {
        const int64_t count = std::min<int64_t>(kPqTile, codewords - first);
        double squares[kPqTile] = {};
        for (int64_t s = 0; s < dims; ++s) {
            float* to = tile + (s + 2) * kPqTile;
            for (int64_t i = 0; i < kPqTile; ++i) {
                const float x = i < count ? memory[s * padded + first + i] - center[s] : 0.0f;
                squares[i] += static_cast<double>(x) * static_cast<double>(x);
                to[i] = x;
            }
        }
        for (int64_t i = 0; i < kPqTile; ++i) {
            largest = std::max(largest, squares[i]);
            const auto number = static_cast<uint32_t>(first + i);
            tile[i] = i < count ? static_cast<float>(std::min(0.5 * squares[i], 1e38)) : 1e38f;
            std::memcpy(tile + kPqTile + i, &number, 4);
        }
    }
    book.radius = static_cast<float>(std::min(std::sqrt(largest) * (1.0 + 1e-6), 1e38));
    return book;
}

}  // namespace asx
