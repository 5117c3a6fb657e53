// Product quantization: scans over packed codes, float tables, assignment, packing.
#pragma once

#include <memory>
#include <vector>

#include "ops/problem.h"

namespace asx {

// How scores are made of sums, per query; see backends/protocol.py. All empty: sums are scores.
struct ScoreScaling {
    std::vector<double> offset, base, step, weight;
};

class PqProblem final : public Problem {
public:
    // tables: (count, subspaces, 2**bits); they are read until the problem dies.
    PqProblem(const KernelTable& table, std::shared_ptr<const Rows> rows, int64_t subspaces, int bits, const float* tables, int64_t count,
              bool largest, ScoreScaling scaling, bool scan);

    bool exact() const override { return true; }
    void canonical(int64_t query, const int64_t* rows, int64_t count, float* keys) const override;
    void prepare(Block& block, const Chunk& chunk, int64_t start, Workspace&) const override;
    // The query packed by itself. For sums that are scores.
    Group alone(int64_t query) const;
    // Scans runs of packed rows for such a query: see `KernelTable::pq_runs`.
    int64_t scan_runs(const Group& alone, const PqRun* runs, int64_t count, float threshold, Survivors& survivors) const {
        return table_.pq_runs[bits_ == 8](runs, count, subspaces_, alone.packed.get(), threshold, &survivors);
    }
    // Canonical keys of all rows for a query that was packed by itself, by this problem or another one with the same tables.
    void keys_of_all(const Group& alone, float* keys) const;

private:
    float key_of_sum(int64_t query, int64_t row, float sum) const;

    const KernelTable& table_;
    int64_t subspaces_;
    int bits_;
    const float* tables_;
    ScoreScaling scaling_; // its offsets and weights are those of keys
};

// Codebooks (subspaces, codewords, dims), to be read until this dies.
class Codebooks {
public:
    Codebooks(const float* codebooks, int64_t subspaces, int64_t codewords, int64_t dims);
    // Keeps what `tables` needs of them for many queries, so that few take no longer. As much memory again.
    void keep_transposed();
    // out (count, subspaces, codewords); missing dims of the queries count as zero. Whether all entries are finite.
    bool tables(const KernelTable& table, const float* queries, int64_t count, int64_t query_dims, bool squared, float* out) const;
    void assign(const KernelTable& table, const float* vectors, int64_t stride, int64_t count, int64_t vector_dims, int32_t* out) const;
    // Vectors are units (count, vector_dims) times lengths.
    void descend(const KernelTable& table, const float* units, const float* lengths, int64_t count, int64_t vector_dims, float extra,
                 int64_t sweeps, int32_t* codes) const;

private:
    int64_t subspaces_, codewords_, dims_, padded_;
    const float* codebooks_;
    std::vector<float> transposed_; // (subspaces, dims, padded), or nothing
};

// The sums (codewords, width) in float64 of the points that every codeword has, added in the order of the points, and how many it has.
// Points are `stride` bytes apart, at any address.
void centroid_sums(const uint8_t* points, int64_t stride, int64_t count, int64_t width, const int32_t* nearest, int64_t codewords,
                   double* sums, int64_t* counts);

// Rounds tables (count, subspaces, entries) in place to whole numbers 0..63: see backends/protocol.py.
void make_whole(const KernelTable& table, float* tables, int64_t count, int64_t subspaces, int64_t entries, double* base, double* step);

// Row-major codes (rows, code bytes) to blocks of 64 rows and back; code bytes: subspaces, or half of them rounded up for 4 bits.
void pack_codes(const uint8_t* codes, int64_t stride, int64_t rows, int64_t code_bytes, uint8_t* out);
void unpack_codes(const uint8_t* packed, int64_t rows, int64_t code_bytes, uint8_t* out);

}  // namespace asx
