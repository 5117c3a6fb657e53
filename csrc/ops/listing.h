// Inverted lists: every row belongs to the list of its nearest centroid, and codes are kept list by list, so that a search can begin with the
// lists that look best to its query, and pass by those in which nothing can matter.
#pragma once

#include <memory>
#include <vector>

#include "ops/problem.h"

namespace asx {

// Rows are as good as their lists. Pieces of rows are the numbers of their lists, uint16. It names rows' keys, and scans nothing.
class ListProblem final : public Problem {
public:
    // keys: (count, lists), no NaN among them; they are read until the problem dies.
    ListProblem(std::shared_ptr<const Rows> rows, const float* keys, int64_t count, int64_t lists)
        : Problem(std::move(rows), count, false), keys_(keys), lists_(lists) {}

    int64_t lists() const { return lists_; }
    const float* keys(int64_t query) const { return keys_ + query * lists_; }
    bool exact() const override { return true; }
    void canonical(int64_t query, const int64_t* rows, int64_t count, float* keys) const override;
    void prepare(Block&, const Chunk&, int64_t, Workspace&) const override {}

private:
    const float* keys_;
    int64_t lists_;
};

// Packed codes of all rows once more, in the order of lists, each of which begins with a new block.
class Listing {
public:
    // of_rows: numbers of lists, all below `lists`, of chunks as long as those of the codes, and of no more than kMostRows. What another
    // listing made of chunks in the same memory, which nobody has freed or written to since, is taken over; or null.
    Listing(std::shared_ptr<const Rows> codes, const Rows& of_rows, int64_t lists, const Listing* before);

    static constexpr int64_t kMostRows = 65536;

    int64_t lists() const { return lists_; }
    int64_t rows() const { return codes_->size(); }
    const Rows& codes() const { return *codes_; }

    // The part of a list that one chunk holds.
    struct Part {
        Piece codes;
        int64_t first, rows; // number of the chunk's first row among all rows; rows of the part
        const uint16_t* places; // of its rows within the chunk
    };
    size_t chunks() const { return chunks_.size(); }
    Part part(int64_t list, size_t chunk) const;

private:
    struct Own {
        const uint8_t *from, *numbers; // memory that it was made from
        std::vector<int64_t> blocks, begins; // of every list, and their ends
        std::vector<uint16_t> places;
        Aligned codes;
    };
    std::shared_ptr<const Own> listed(const Chunk& codes, const Chunk& of_rows) const;

    std::shared_ptr<const Rows> codes_;
    int64_t lists_;
    Piece piece_{};
    std::vector<std::shared_ptr<const Own>> chunks_;
    std::vector<int64_t> first_; // row of every chunk
};

} // namespace asx
