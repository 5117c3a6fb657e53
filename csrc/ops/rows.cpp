#include "ops/rows.h"

#include <algorithm>
#include <numeric>

namespace asx {

Rows::Rows(Kind kind, std::vector<int64_t> widths, std::vector<Chunk> chunks, const int64_t* ids)
    : kind_(kind), widths_(std::move(widths)), ids_(ids) {
    for (Chunk& chunk : chunks) {
        if (chunk.rows == 0) continue;
        chunk.first = size_;
        size_ += chunk.rows;
        first_visit_.push_back(visits_);
        visits_ += (chunk.rows + kBlockRows - 1) / kBlockRows;
        chunks_.push_back(std::move(chunk));
    }
    // Scattered so that sorted data cannot defeat thresholds: steps of about 0.618 of all blocks, coprime to their number.
    stride_ = std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(visits_) * 0.6180339887498949));
    while (visits_ > 1 && std::gcd(stride_, visits_) != 1) ++stride_;
}

int64_t Rows::dims() const { return std::accumulate(widths_.begin(), widths_.end(), int64_t{0}); }

Visit Rows::visit(int64_t number) const {
    const int64_t block =
        static_cast<int64_t>(static_cast<unsigned __int128>(number) * static_cast<uint64_t>(stride_) % static_cast<uint64_t>(visits_));
    const auto after = std::upper_bound(first_visit_.begin(), first_visit_.end(), block);
    const Chunk& chunk = chunks_[static_cast<size_t>(after - first_visit_.begin() - 1)];
    const int64_t start = (block - *(after - 1)) * kBlockRows;
    return {&chunk, start, std::min(kBlockRows, chunk.rows - start)};
}

const Chunk& Rows::chunk_of(int64_t row) const {
    const auto after = std::upper_bound(chunks_.begin(), chunks_.end(), row, [](int64_t r, const Chunk& c) { return r < c.first; });
    return *(after - 1);
}

}  // namespace asx
