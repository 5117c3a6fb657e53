// Rows as ops sees them: chunks of pieces, and the order in which their blocks are visited.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"

namespace asx {

struct Chunk {
    std::vector<Piece> pieces;
    int64_t rows = 0;
    int64_t first = 0;                  // number of its first row among all rows
    const float* norms = nullptr;       // per row, when known; of codes with scales, their terms
    const float* weights = nullptr;     // per row, for stages of cascades: what a query's margin is multiplied with
};

// Up to kBlockRows consecutive rows of one chunk.
struct Visit {
    const Chunk* chunk;
    int64_t start;                      // row within the chunk
    int64_t rows;
};

class Rows {
public:
    Rows(Kind kind, std::vector<int64_t> widths, std::vector<Chunk> chunks, const int64_t* ids);

    Kind kind() const { return kind_; }
    const std::vector<int64_t>& widths() const { return widths_; }
    int64_t dims() const;
    const std::vector<Chunk>& chunks() const { return chunks_; }
    int64_t size() const { return size_; }
    int64_t visits() const { return visits_; }
    Visit visit(int64_t number) const;
    const Chunk& chunk_of(int64_t row) const;
    // Asks for a row that is about to be read.
    void fetch(int64_t row) const {
        const Chunk& chunk = chunk_of(row);
        for (const Piece& piece : chunk.pieces) {
            const uint8_t* from = piece.base + (row - chunk.first) * piece.stride;
            for (int64_t b = 0; b < piece.stride && b < 512; b += 64) __builtin_prefetch(from + b);
        }
    }
    // What breaks ties: the id that the user sees.
    int64_t id(int64_t row) const { return ids_ ? ids_[row] : row; }

    uint64_t last_word = ~uint64_t{0};  // binary codes: which bits of the last 64-bit word count

private:
    Kind kind_;
    std::vector<int64_t> widths_;
    std::vector<Chunk> chunks_;
    std::vector<int64_t> first_visit_;  // of every chunk
    const int64_t* ids_;
    int64_t size_ = 0, visits_ = 0, stride_ = 1;
};

}  // namespace asx
