// One search to be scanned or rescored: rows, queries, metric. Immutable, shared by all scans that work on it.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels/table.h"
#include "ops/rows.h"

namespace asx {

struct FreeMemory {
    void operator()(void* p) const { std::free(p); }
};
using Aligned = std::unique_ptr<uint8_t[], FreeMemory>;
Aligned allocate_aligned(int64_t bytes);        // 64-byte aligned; throws std::bad_alloc
Aligned allocate_large(int64_t bytes);          // in large pages where the system has them, as random places of it will be read

// Queries packed for one shape.
struct Group {
    const Shape* shape;
    int64_t first;
    int32_t count;
    Aligned packed;
};

// Memory that a scan works in: row terms of one block, partial sums, unpacked rows, survivors.
struct Workspace {
    explicit Workspace(int64_t unpacked_bytes);
    Aligned memory;
    int64_t unpacked_bytes;
    float *squares, *scale, *bias, *slack, *sums, *unpacked;
    int32_t *row_sums, *peaks;
    Survivors survivors;
};

// The calling thread's workspace, kept from call to call: fresh pages cost more than a small search.
Workspace& thread_workspace(int64_t unpacked_bytes);

class Problem {
public:
    Problem(std::shared_ptr<const Rows> rows, int64_t queries, bool smallest_first)
        : rows_(std::move(rows)), queries_(queries), smallest_first_(smallest_first) {}
    virtual ~Problem() = default;

    const Rows& rows() const { return *rows_; }
    int64_t queries() const { return queries_; }
    bool smallest_first() const { return smallest_first_; }             // scores are distances: minus the key
    const std::vector<Group>& groups() const { return groups_; }

    // Keys of `count` rows (global numbers, rising), as the canonical score defines them; NaN is returned as minus infinity.
    virtual void canonical(int64_t query, const int64_t* rows, int64_t count, float* keys) const = 0;
    // Whether scans yield canonical keys at once.
    virtual bool exact() const { return false; }

    // Row terms of the block, for all groups, or left to the kernels (block.ready false) when that is cheaper.
    // May replace the block's pieces by unpacked ones.
    virtual void prepare(Block& block, const Chunk& chunk, int64_t start, Workspace& workspace) const = 0;
    // The first row of the block at or after `from` that is not finite, or -1; called when the terms are there.
    virtual int64_t first_bad_row(const Block&, const Chunk&, int64_t /*start*/, int64_t /*from*/) const { return -1; }
    // Whether a row holds NaN or infinity, as far as the caller has not ruled it out.
    virtual bool is_bad_row(int64_t) const { return false; }
    // |key - canonical key| <= slack(query) * (row terms' slack, or 1) + underflow().
    float slack(int64_t query) const { return slack_.empty() ? 0.0f : slack_[static_cast<size_t>(query)]; }
    bool has_row_slack() const { return has_row_slack_; }
    float underflow() const { return underflow_; }
    // What kernel keys lack, per query: minus |q|^2 for l2.
    float shift(int64_t query) const { return shift_.empty() ? 0.0f : shift_[static_cast<size_t>(query)]; }

    virtual int64_t unpacked_bytes() const { return 0; }
    bool in_pq_blocks() const { return in_pq_blocks_; }         // pieces advance by blocks of 64 rows
    int64_t block_rows() const { return block_rows_; }          // rows that stay in the second-level cache between groups

protected:
    // Queries as they are, one beside the other, and what is to be known of them.
    struct PackedAs {
        const void* data;
        int64_t stride;
        const std::vector<int64_t>& widths;
        const float *factor, *offset;   // of every query, or null
        bool largest;
        Scaling scaling = {};
    };
    void pack(const Family& family, const PackedAs& as);
    Group packed(const Shape& shape, const PackedAs& as, int64_t first, int64_t count) const;

    std::shared_ptr<const Rows> rows_;
    int64_t queries_;
    bool smallest_first_;
    std::vector<Group> groups_;
    std::vector<float> slack_, shift_;
    bool has_row_slack_ = true;
    float underflow_ = 0.0f;
    int64_t block_rows_ = kBlockRows;
    bool in_pq_blocks_ = false;
};

// The shape with which `remaining` queries waste the fewest places and passes. Shapes of a batch never grow: the first group is a tile if any is,
// which is what unpacks rows and makes the sums of int8 rows for all groups.
const Shape& choose_shape(const Family& family, int64_t remaining);

// Rows of a block that several groups read again and again.
int64_t cached_rows(int64_t row_bytes);

}  // namespace asx
