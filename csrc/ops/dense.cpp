#include "ops/dense.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "ops/bounds.h"
#include "ops/cpu.h"

namespace asx {

namespace {

constexpr float kInfinite = std::numeric_limits<float>::infinity();
constexpr int64_t kFirstCacheBytes = 24 << 10;       // of a first-level cache, with room for a query
constexpr float kLargestNorm = 1e18f;       // beyond, products of norms may overflow and bounds say nothing

int64_t element_bytes(Kind kind) { return kind == kFloat32 ? 4 : kind == kInt8 ? 1 : 2; }

bool row_is_finite(Kind kind, const std::vector<Piece>& pieces, int64_t row) {
    for (const Piece& piece : pieces) {
        const uint8_t* p = piece.base + row * piece.stride;
        for (int64_t i = 0; i < piece.width; ++i) {
            uint32_t bits = 0;
            if (kind == kFloat32) {
                __builtin_memcpy(&bits, p + 4 * i, 4);
                if ((bits & 0x7f800000u) == 0x7f800000u) return false;
            } else {
                __builtin_memcpy(&bits, p + 2 * i, 2);
                const uint32_t exponent = kind == kFloat16 ? 0x7c00u : 0x7f80u;
                if ((bits & exponent) == exponent) return false;
            }
        }
    }
    return true;
}

// Rows whose sum of squares is not finite are looked at element by element: it may only have overflowed.
int64_t bad_among(const Block& block, Kind kind, const Chunk& chunk, int64_t start, int64_t from) {
    uint32_t suspicious = 0;
    for (int64_t r = from; r < block.rows; ++r)
        suspicious |= static_cast<uint32_t>(!(block.squares[r] <= std::numeric_limits<float>::max()));
    if (!suspicious) return -1;
    for (int64_t r = from; r < block.rows; ++r)
        if (!(block.squares[r] <= std::numeric_limits<float>::max()) && !row_is_finite(kind, chunk.pieces, start + r)) return r;
    return -1;
}

float underflow_slack(int64_t dims) { return static_cast<float>((static_cast<double>(dims) + 8.0) * 2.0 * 0x1p-149); }

// Whether rows are parts of others at least twice as wide, and so narrow that few sets of the caches hold them.
bool far_apart(const Rows& rows) {
    constexpr int64_t widest = 2048; // bytes
    const int64_t bytes = rows.dims() * element_bytes(rows.kind()), least = 2 * bytes;
    if (bytes > widest) return false;
    return std::all_of(rows.chunks().begin(), rows.chunks().end(),
                       [&](const Chunk& chunk) { return chunk.pieces.size() == 1 && std::abs(chunk.pieces[0].stride) >= least; });
}

// Leaves it to the kernels to unpack the block's rows to `to`.
void unpack_to(const KernelTable& table, Kind kind, Block& block, int64_t dims, float* to) {
    block.unpack = table.unpack[kind];
    block.source_bytes = static_cast<int32_t>(element_bytes(kind));
    block.n_sources = block.n_pieces;
    std::copy_n(block.pieces, block.n_pieces, block.source);
    block.pieces[0] = {reinterpret_cast<const uint8_t*>(to), (dims + 15) / 16 * 16 * 4, dims};
    block.n_pieces = 1;
}

}  // namespace

void unit_queries(const KernelTable& table, const float* queries, int64_t count, int64_t dims, float* out) {
    for (int64_t q = 0; q < count; ++q) {
        const Piece piece = {reinterpret_cast<const uint8_t*>(queries + q * dims), 0, dims};
        double norm;
        table.norms[kFloat32](&piece, 1, 0, 1, &norm);
        for (int64_t i = 0; i < dims; ++i)
            out[q * dims + i] = norm > 0 ? static_cast<float>(static_cast<double>(queries[q * dims + i]) / norm) : 0.0f;
    }
}

void map_queries(const KernelTable& table, const float* queries, int64_t count, const float* matrix, int64_t n, int64_t dims, float* out) {
    if (n == 1) return table.products(matrix, 1, queries, count, dims, out, count); // products are the same either way round
    // A few rows at a time stay in the first-level cache while so many queries pass as the second has room for.
    constexpr int64_t group = 64, whole_tiles = 12;
    const int64_t step = count == 1 ? n : std::clamp<int64_t>(kFirstCacheBytes / (dims * 4) / whole_tiles * whole_tiles, whole_tiles, 96);
    for (int64_t q = 0; q < count; q += group)
        for (int64_t first = 0; first < n; first += step)
            table.products(queries + q * dims, std::min(group, count - q), matrix + first * dims, std::min(step, n - first), dims,
                           out + q * n + first, n);
}

void row_norms(const KernelTable& table, Kind kind, const Chunk& chunk, bool upward, float* out) {
    double norms[256];
    for (int64_t first = 0; first < chunk.rows; first += 256) {
        const int64_t count = std::min<int64_t>(256, chunk.rows - first);
        table.norms[kind](chunk.pieces.data(), static_cast<int32_t>(chunk.pieces.size()), first, count, norms);
        for (int64_t i = 0; i < count; ++i) out[first + i] = upward ? round_up(norms[i] * (1.0 + 0x1p-40)) : static_cast<float>(norms[i]);
    }
}

DenseProblem::DenseProblem(const KernelTable& table, std::shared_ptr<const Rows> rows, int64_t count, Metric metric,
                           std::vector<float> queries)
    : Problem(std::move(rows), count, metric == kL2), table_(table), metric_(metric), canonical_queries_(std::move(queries)) {}

double DenseProblem::query_norm(int64_t number) const {
    const Piece piece = {reinterpret_cast<const uint8_t*>(query(number)), 0, rows_->dims()};
    double norm;
    table_.norms[kFloat32](&piece, 1, 0, 1, &norm);
    return norm;
}

DenseProblem::Rounding DenseProblem::plan_scan() {
    const int64_t dims = rows_->dims();
    const Kind kind = rows_->kind();
    const int32_t together = choose_shape(table_.dense[kFloat32], queries_).queries;
    const bool tiles = together > table_.dense[kFloat32].shapes[0].queries;
    const bool own_tiles = table_.dense[kind].shapes[1].queries > 0;
    // Rows far apart share few sets of the caches: from so many passes on a copy of each block takes less time.
    constexpr int32_t passes = 4;
    unpack_ = tiles && (!own_tiles || (kind == kFloat32 && queries_ > passes * together && far_apart(*rows_)));
    const Kind scanned = unpack_ ? kFloat32 : kind;
    bool known_norms = true;
    for (const Chunk& chunk : rows_->chunks()) known_norms &= chunk.norms != nullptr;
    leave_terms_ = !known_norms;
    if (tiles) block_rows_ = cached_rows(dims * element_bytes(scanned));
    const bool rounded_queries = tiles && scanned == kBFloat16;
    // vdpbf16ps takes subnormal operands and results for zero: each may cost 2^-126 times the other operand, or by itself.
    return {relative_slack(dims) + (rounded_queries ? 0x1.02p-8f : 0.0f),
            rounded_queries ? 0x1p-125 * std::sqrt(static_cast<double>(dims)) : 0.0};
}

void DenseProblem::pack_queries() {
    const int64_t dims = rows_->dims();
    const std::vector<int64_t> whole = {dims};
    pack(table_.dense[unpack_ ? kFloat32 : rows_->kind()],
         {canonical_queries_.data(), dims * 4, unpack_ ? whole : rows_->widths(), nullptr, nullptr, true});
}

DenseProblem::DenseProblem(const KernelTable& table, std::shared_ptr<const Rows> rows, const float* queries, int64_t count, Metric metric,
                           bool scan)
    : DenseProblem(table, rows, count, metric, std::vector<float>(queries, queries + count * rows->dims())) {
    const int64_t dims = rows_->dims();
    if (metric == kCosine) unit_queries(table, queries, count, dims, canonical_queries_.data());
    if (!scan) return;

    const Rounding rounding = plan_scan();
    underflow_ = underflow_slack(dims);
    slack_.resize(static_cast<size_t>(count));
    for (int64_t q = 0; q < count; ++q) {
        const double norm = query_norm(q);
        query_norm_ = std::max(query_norm_, round_up(norm));
        const double reach = metric == kIp ? norm : metric == kCosine ? (norm > 0 ? 1.001 : 0.0) : 1.0;
        slack_[static_cast<size_t>(q)] =
            norm > static_cast<double>(kLargestNorm) ? kInfinite : round_up(rounding.relative * reach + rounding.flushed);
        if (rounding.flushed > 0) underflow_ = std::max(underflow_, round_up((static_cast<double>(dims) + 8.0) * 0x1p-124 * (1.0 + norm)));
        if (metric == kL2) shift_.push_back(-static_cast<float>(norm * norm));
    }
    pack_queries();
}

PrefixProblem::PrefixProblem(const KernelTable& table, std::shared_ptr<const Rows> rows, const float* queries, int64_t count, Metric metric,
                             const double* squares, const double* margins, double largest, bool scan)
    : DenseProblem(table, rows, count, metric, std::vector<float>(queries, queries + count * rows->dims())),
      squares_(squares, squares + count) {
    if (!scan) return;
    const Rounding rounding = plan_scan();
    const double dims = static_cast<double>(rows_->dims());
    underflow_ = underflow_slack(rows_->dims());
    slack_.resize(static_cast<size_t>(count));
    for (int64_t q = 0; q < count; ++q) {
        const double norm = std::sqrt(squares_[static_cast<size_t>(q)]);
        const double reach = metric == kIp ? norm * largest : metric == kCosine ? 1.001 : (norm + largest) * (norm + largest);
        // 2^-20: the kernels' additions of margins, and the float32 that keys are rounded to
        const double error = (rounding.relative + 0x1p-20) * reach +
                             (rounding.flushed + (rounding.flushed > 0 ? (dims + 8.0) * 0x1p-124 : 0.0)) * (1.0 + norm + largest);
        underflow_ = std::max(underflow_, round_up(error));
        slack_[static_cast<size_t>(q)] = kernel_margin(margins[q]);
        if (metric == kL2) shift_.push_back(-static_cast<float>(squares_[static_cast<size_t>(q)]));
    }
    pack_queries();
}

int64_t DenseProblem::unpacked_bytes() const { return unpack_ ? block_rows_ * ((rows_->dims() + 15) / 16 * 16) * 4 : 0; }

template <class Finish>
void DenseProblem::sums(int64_t number, const int64_t* rows, int64_t count, bool squared, float* keys, Finish finish) const {
    constexpr int64_t at_once = 64;
    int64_t local[at_once];
    for (int64_t i = 0; i < count;) {
        const Chunk& chunk = rows_->chunk_of(rows[i]);
        int64_t n = 0;
        for (; n < at_once && i + n < count && rows[i + n] < chunk.first + chunk.rows; ++n) local[n] = rows[i + n] - chunk.first;
        table_.canonical[rows_->kind()](chunk.pieces.data(), static_cast<int32_t>(chunk.pieces.size()), query(number), local, n, squared,
                                        keys + i);
        for (int64_t j = 0; j < n; ++j) {
            const float key = finish(chunk, local[j], keys[i + j]);
            keys[i + j] = std::isnan(key) ? -kInfinite : key;
        }
        i += n;
    }
}

void DenseProblem::canonical(int64_t number, const int64_t* rows, int64_t count, float* keys) const {
    sums(number, rows, count, metric_ == kL2, keys, [&](const Chunk& chunk, int64_t local, float sum) {
        if (metric_ == kL2) return -sum;
        if (metric_ == kIp) return sum;
        float norm;
        if (chunk.norms) {
            norm = chunk.norms[local];
        } else {
            double wide;
            table_.norms[rows_->kind()](chunk.pieces.data(), static_cast<int32_t>(chunk.pieces.size()), local, 1, &wide);
            norm = static_cast<float>(wide);
        }
        return norm == 0.0f ? 0.0f : sum / norm;
    });
}

void PrefixProblem::canonical(int64_t number, const int64_t* rows, int64_t count, float* keys) const {
    const double square = squares_[static_cast<size_t>(number)];
    sums(number, rows, count, false, keys, [&](const Chunk& chunk, int64_t local, float sum) {
        const double norm = static_cast<double>(chunk.norms[local]), product = static_cast<double>(sum);
        if (metric_ == kCosine) return norm == 0.0 ? 0.0f : static_cast<float>(product / norm);
        return metric_ == kIp ? sum : static_cast<float>(2.0 * product - (square + norm * norm));
    });
}

void PrefixProblem::prepare(Block& block, const Chunk& chunk, int64_t start, Workspace& workspace) const {
    DenseProblem::prepare(block, chunk, start, workspace);
    std::copy_n(chunk.weights + start, block.rows, block.slack);
}

void DenseProblem::prepare(Block& block, const Chunk& chunk, int64_t start, Workspace& workspace) const {
    block.metric = metric_;
    block.query_norm = query_norm_;
    if (unpack_) unpack_to(table_, rows_->kind(), block, rows_->dims(), workspace.unpacked);
    block.ready = !leave_terms_;
    if (leave_terms_) return;
    table_.dense_terms(&block, chunk.norms + start);
}

int64_t DenseProblem::first_bad_row(const Block& block, const Chunk& chunk, int64_t start, int64_t from) const {
    if (chunk.norms || rows_->kind() == kInt8) return -1;
    return bad_among(block, rows_->kind(), chunk, start, from);
}

bool DenseProblem::is_bad_row(int64_t row) const {
    const Chunk& chunk = rows_->chunk_of(row);
    return rows_->kind() != kInt8 && !chunk.norms && !row_is_finite(rows_->kind(), chunk.pieces, row - chunk.first);
}

int64_t dense_dot(const KernelTable& table, const Rows& rows, const float* queries, int64_t count, int64_t first, int64_t last, float* out,
                  int64_t out_stride) {
    const int64_t dims = rows.dims();
    const Kind kind = rows.kind();
    const bool unpack = kind != kFloat32 && choose_shape(table.dense[kFloat32], count).queries > table.dense[kFloat32].shapes[0].queries;
    const Family& family = table.dense[unpack ? kFloat32 : kind];
    const std::vector<int64_t> whole = {dims};
    const std::vector<int64_t>& widths = unpack ? whole : rows.widths();
    std::vector<Group> groups;
    for (int64_t q = 0; q < count;) {
        const Shape& shape = choose_shape(family, count - q);
        Queries in = {};
        in.data = queries + q * dims;
        in.stride = dims * 4;
        in.count = static_cast<int32_t>(std::min<int64_t>(shape.queries, count - q));
        in.widths = widths.data();
        in.n_pieces = static_cast<int32_t>(widths.size());
        groups.push_back({&shape, q, in.count, allocate_aligned(shape.packed_bytes(&in))});
        shape.pack(&in, groups.back().packed.get());
        q += in.count;
    }
    const int64_t step = cached_rows(dims * (unpack ? 4 : element_bytes(kind)));
    Workspace& workspace = thread_workspace(unpack ? step * ((dims + 15) / 16 * 16) * 4 : 0);
    int64_t bad_row = -1;
    for (int64_t row = first; row < last;) {
        const Chunk& chunk = rows.chunk_of(row);
        const int64_t start = row - chunk.first;
        Block block = {};
        block.rows = std::min({step, last - row, chunk.rows - start});
        block.n_pieces = static_cast<int32_t>(chunk.pieces.size());
        for (int32_t j = 0; j < block.n_pieces; ++j) {
            block.pieces[j] = chunk.pieces[static_cast<size_t>(j)];
            block.pieces[j].base += start * block.pieces[j].stride;
        }
        block.squares = workspace.squares, block.workspace = workspace.sums;
        block.ahead = prefetch_distance();
        if (unpack) {
            unpack_to(table, kind, block, dims, workspace.unpacked);
            float* to = workspace.unpacked;
            for (int32_t j = 0; j < block.n_sources; to += block.source[j++].width)
                block.unpack(&block.source[j], block.rows, to, block.pieces[0].stride / 4);
        }
        if (!chunk.norms && kind != kInt8) {
            table.squares[unpack ? kFloat32 : kind](&block);
            const int64_t bad = bad_among(block, kind, chunk, start, 0);
            if (bad >= 0 && bad_row < 0) bad_row = row + bad;
        }
        for (const Group& group : groups)
            group.shape->fill(&block, group.packed.get(), out + group.first * out_stride + (row - first), out_stride);
        row += block.rows;
    }
    return bad_row;
}

}  // namespace asx
