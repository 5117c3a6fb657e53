// Inverted lists: every row belongs to the list of its nearest centroid, and codes are kept list by list, so that a search can begin with the
// lists that look best to its query, and pass by those in which nothing can matter.
#pragma once

#include <memory>
#include <vector>

#include "ops/pq.h"

namespace asx {

// Rows are as good as their lists, and these as their centroids, which are coded like rows. Pieces of rows are the numbers of their lists,
// uint16. It names rows' keys, and scans nothing.
class ListProblem final : public Problem {
public:
    ListProblem(std::shared_ptr<const Rows> rows, std::shared_ptr<const PqProblem> centroids)
        : Problem(std::move(rows), centroids->queries(), centroids->smallest_first()), centroids_(std::move(centroids)) {}

    int64_t lists() const { return centroids_->rows().size(); }
    const PqProblem& centroids() const { return *centroids_; }
    bool exact() const override { return true; }
    void canonical(int64_t query, const int64_t* rows, int64_t count, float* keys) const override;
    void prepare(Block&, const Chunk&, int64_t, Workspace&) const override {}

private:
    std::shared_ptr<const PqProblem> centroids_;
};

// Packed codes of all rows once more, in the order of lists, each of which begins with a new block. Chunks that came or changed later are
// listed by themselves, and all together when there are too many such parts.
class Listing {
public:
    // of_rows: numbers of lists, all below `lists`, of chunks as long as those of the codes; no more than kMostRows rows. What another
    // listing made of chunks in the same memory, which nobody has freed or written to since, is taken over; or null.
    Listing(std::shared_ptr<const Rows> codes, const Rows& of_rows, int64_t lists, const Listing* before);

    static constexpr int64_t kMostRows = int64_t{1} << 32;

    int64_t lists() const { return lists_; }
    int64_t rows() const { return codes_->size(); }
    const Rows& codes() const { return *codes_; }

    // The part of a list that some chunks hold.
    struct Part {
        Piece codes;
        int64_t rows;
        const uint32_t* places; // their numbers among all rows
    };
    size_t parts() const { return parts_.size(); }
    Part part(int64_t list, size_t number) const;

private:
    // A chunk, and the memory that it was in.
    struct Source {
        const uint8_t *codes, *numbers;
        int64_t first, rows;
        bool operator==(const Source& other) const {
            return codes == other.codes && numbers == other.numbers && first == other.first && rows == other.rows;
        }
    };
    struct Own {
        std::vector<Source> sources;
        std::vector<int64_t> blocks, begins; // of every list, and their ends
        std::vector<uint32_t> places;
        Aligned codes;
    };
    std::shared_ptr<const Own> listed(std::vector<Source> sources) const;

    std::shared_ptr<const Rows> codes_;
    int64_t lists_;
    Piece piece_{};
    std::vector<std::shared_ptr<const Own>> parts_;
};

} // namespace asx
