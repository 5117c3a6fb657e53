// Packed binary codes: Hamming distance.
#pragma once

#include <memory>
#include <vector>

#include "ops/problem.h"

namespace asx {

// Which bits of the last 64-bit word of a row of `bits` bits count, in np.packbits order (most significant bit first in each byte).
uint64_t last_word_mask(int64_t bits);

class HammingProblem final : public Problem {
public:
    HammingProblem(const KernelTable& table, std::shared_ptr<const Rows> rows, const uint8_t* codes, int64_t count, bool scan);

    void canonical(int64_t query, const int64_t* rows, int64_t count, float* keys) const override;
    bool exact() const override { return true; }
    void prepare(Block& block, const Chunk&, int64_t, Workspace& workspace) const override;
    int64_t unpacked_bytes() const override { return block_rows_ * turned_row_bytes_; }

private:
    const KernelTable& table_;
    std::vector<uint8_t> codes_;
    int64_t turned_row_bytes_ = 0;      // 0: rows are scanned where they lie
};

void hamming_distances(const KernelTable& table, const Rows& rows, const uint8_t* codes, int64_t count, int64_t first, int64_t last,
                       int32_t* out, int64_t out_stride);

}  // namespace asx
