#include "ops/codes.h"

#include <algorithm>

#include "ops/cpu.h"

namespace asx {

uint64_t last_word_mask(int64_t bits) {
    const int64_t in_last = bits - (bits + 63) / 64 * 64 + 64;
    uint64_t mask = 0;
    for (int64_t bit = 0; bit < in_last; ++bit) mask |= uint64_t{1} << (bit / 8 * 8 + 7 - bit % 8);
    return mask;
}

HammingProblem::HammingProblem(const KernelTable& table, std::shared_ptr<const Rows> rows, const uint8_t* codes, int64_t count, bool scan)
    : Problem(std::move(rows), count, true), table_(table) {
    const int64_t width = rows_->dims();
    codes_.assign(codes, codes + count * width);
    has_row_slack_ = false;
    if (!scan) return;
    const TurnedCodes& turned = table.hamming_turned;
    if (turned.family.shapes[0].queries > 0 && count >= turned.least) turned_row_bytes_ = turned.row_bytes(width);
    if (turned_row_bytes_ > 0 || count > table.hamming.shapes[0].queries) block_rows_ = cached_rows(std::max(width, turned_row_bytes_));
    pack(turned_row_bytes_ > 0 ? turned.family : table.hamming, {codes_.data(), width, rows_->widths(), nullptr, nullptr, true});
}

void HammingProblem::canonical(int64_t query, const int64_t* rows, int64_t count, float* keys) const {
    const int64_t width = rows_->dims(), before = (width - 1) / 8 * 8;
    const uint8_t* code = codes_.data() + query * width;
    for (int64_t i = 0; i < count; ++i) {
        const Chunk& chunk = rows_->chunk_of(rows[i]);
        const Piece& piece = chunk.pieces[0];
        const uint8_t* row = piece.base + (rows[i] - chunk.first) * piece.stride;
        uint64_t a = 0, b = 0;
        __builtin_memcpy(&a, code + before, static_cast<size_t>(width - before));
        __builtin_memcpy(&b, row + before, static_cast<size_t>(width - before));
        const auto last = static_cast<uint32_t>(__builtin_popcountll((a ^ b) & rows_->last_word));
        keys[i] = -static_cast<float>(table_.c.hamming_u8(code, row, static_cast<uint64_t>(before)) + last);
    }
}

void HammingProblem::prepare(Block& block, const Chunk&, int64_t, Workspace& workspace) const {
    if (turned_row_bytes_ > 0) table_.hamming_turned.turn(&block, reinterpret_cast<uint8_t*>(workspace.unpacked));
    block.ready = true;
}

void hamming_distances(const KernelTable& table, const Rows& rows, const uint8_t* codes, int64_t count, int64_t first, int64_t last,
                       int32_t* out, int64_t out_stride) {
    const Shape& shape = table.hamming.shapes[0];
    const int64_t width = rows.dims();
    for (int64_t q = 0; q < count; q += shape.queries) {
        Queries in = {};
        in.data = codes + q * width;
        in.stride = width;
        in.count = static_cast<int32_t>(std::min<int64_t>(shape.queries, count - q));
        in.widths = rows.widths().data();
        in.n_pieces = 1;
        in.last_word = rows.last_word;
        const Aligned packed = allocate_aligned(shape.packed_bytes(&in));
        shape.pack(&in, packed.get());
        for (int64_t row = first; row < last;) {
            const Chunk& chunk = rows.chunk_of(row);
            Block block = {};
            block.n_pieces = 1;
            block.pieces[0] = chunk.pieces[0];
            block.pieces[0].base += (row - chunk.first) * block.pieces[0].stride;
            block.rows = std::min({kBlockRows, last - row, chunk.first + chunk.rows - row});
            block.last_word = rows.last_word;
            block.ahead = prefetch_distance();
            shape.fill(&block, packed.get(), out + q * out_stride + (row - first), out_stride);
            row += block.rows;
        }
    }
}

}  // namespace asx
