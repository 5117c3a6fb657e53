// Nearest codewords of the same points time and again, as k-means asks for them.
#pragma once

#include <vector>

#include "ops/codeword_tiles.h"

namespace asx {

// Points (count, dims) next to each other, to be read until this dies.
class Assigner {
public:
    static constexpr int64_t most_codewords = kTagged;

    Assigner(const KernelTable& table, const float* points, int64_t count, int64_t dims, int64_t codewords);

    int64_t codewords() const { return codewords_; }
    int64_t blocks() const { return blocks_; }
    bool ready() const { return rounds_ > 0; }
    // The codebook (codewords, dims) that `assign` is to use from now on; nearest: what it said of the one before, if there was one.
    void move(const float* codebook, const int32_t* nearest);
    // Nearest codewords of the points of blocks first..last; each point is in one of them. Ranges that share no block may be worked at at once.
    void assign(int64_t first, int64_t last, int32_t* nearest);

private:
    void arrange(const int32_t* nearest);

    const KernelTable& table_;
    const float* points_;
    int64_t count_, dims_, codewords_, blocks_, groups_, rounds_ = 0;
    float longest_ = 0.0f; // of the points, from the center
    float reach_ = 0.0f; // the largest distance that there has been between the center and a codeword
    std::vector<float> center_, prepared_, codebook_, centered_, distances_, gaps_, moves_;
    std::vector<int32_t> order_, numbers_; // of codewords in tiles; of points in blocks
    PqCodebook book_;
};

}  // namespace asx
