// What a target publishes: one constant table of kernels, whole or in part. Kernels work on raw memory, cannot fail, allocate nothing.
//
// Keys are "larger is better" throughout: the score for inner product and cosine, minus the distance for l2 and Hamming.
// A scan kernel promises |key - canonical key| <= query_slack * row_slack, and appends every allowed row with
// key + query_slack * row_slack not less than the query's threshold; unordered counts as "not less", so that no NaN is lost.
#pragma once

#include <cstdint>

#include "include/adaptive_search.h"

namespace asx {

enum Kind : int32_t { kFloat32, kFloat16, kBFloat16, kInt8, kKinds };
enum Metric : int32_t { kIp, kCosine, kL2 };

constexpr int kMaxPieces = 8;
constexpr int64_t kBlockRows = 4096; // rows of one visit, the most a scan call is given
constexpr int kPqBlock = 64; // rows of a packed PQ block

// Part of every row: `width` elements at base + row * stride (bytes, any alignment).
struct Piece {
    const uint8_t* base;
    int64_t stride;
    int64_t width;
};

// A block of at most kBlockRows rows. Per-row terms turn a sum into a key: key = scale * sum + bias; see `dense_terms`.
// `ready` tells whether the terms (and row_sums) are filled in; a scan that finds them missing fills them in as it reads the rows.
struct Block {
    Piece pieces[kMaxPieces];
    int32_t n_pieces;
    Metric metric;
    int64_t rows;
    const uint8_t* allowed; // one byte a row, or null
    bool ready;
    float query_norm; // largest norm of the batch's queries, for the l2 slack
    float* squares; // per row: sum of squares, any order of summation
    float* scale;
    float* bias;
    float* slack;
    int32_t* row_sums; // integer family: sum of the row's elements
    int32_t* peaks; // and the largest sum of two neighbours' magnitudes, in it or the rows of its tile, where tiles are guarded by that
    bool scaled; // integer family: whether sums are first multiplied with `scale`
    float* workspace; // kBlockRows * 4 floats
    const float* scales; // PQ whose sums are scaled: per row
    const float* terms; // and what the query's weight is multiplied with, or null
    uint64_t last_word; // Hamming: which bits of the row's last (partial) 64-bit word count
    bool cold; // no scan has read these rows yet
    // Rows that tiles do not read as they are: the tile that reads them first unpacks them from `source` to where `pieces` are. Else null.
    void (*unpack)(const Piece*, int64_t rows, float* out, int64_t out_stride);
    Piece source[kMaxPieces];
    int32_t n_sources;
    int32_t source_bytes; // of an element
    int64_t ahead; // how many bytes ahead scans of few queries fetch; 0 where the hardware does it better
};

struct Survivor {
    uint32_t row; // within the block
    uint32_t query; // within the packed queries
    float key;
};

struct Survivors {
    Survivor* items;
    int64_t count;
    int64_t capacity; // at least 4 * kBlockRows: dense scans of few queries never stop midway, and no tile of a batch makes more
};

// What sums of PQ entries are of keys, per query, in float64: offset + weight * term of the row + scale of the row * (base + step * sum). Null:
// sums are keys, or minus them. Scales are from 0 to 1e30, terms from -1e30 to 1e30, steps from 1e-33 up.
struct Scaling {
    const double *offset, *base, *step, *weight;
};

// Queries to pack: `count` of them; element type as the family says (float32, int8, bytes, or float32 PQ tables).
struct Queries {
    const void* data;
    int64_t stride; // bytes
    int32_t count;
    const int64_t* widths; // of the pieces
    int32_t n_pieces;
    const float* slack; // per query
    const float* factor; // integer family: key = (offset + bias) + factor * (scale * sum), each rounded
    const float* offset;
    uint64_t last_word;
    bool largest; // PQ: whether larger sums are better
    Scaling scaling; // PQ; sums are then better the larger they are
};

// One way to scan: up to `queries` queries in a call. `packed_bytes` bounds what `pack` writes (64-byte aligned).
// `scan` returns the number of rows finished: all of them, or fewer when the survivor buffer might not hold the next tile.
struct Shape {
    int32_t queries;
    int64_t (*packed_bytes)(const Queries*);
    void (*pack)(const Queries*, void* packed);
    int64_t (*scan)(const Block*, const void* packed, const float* thresholds, Survivors*);
    // fills out[query * out_stride + row] with plain sums (dense), distances (Hamming, as int32) or keys (PQ without scales); null where not
    // offered
    void (*fill)(const Block*, const void* packed, void* out, int64_t out_stride);
};

// Packed rows somewhere: a list, or a part of one. Its codes begin a block.
struct PqRun {
    const uint8_t* codes;
    int64_t rows; // at most kBlockRows
};

// Codebooks for `pq_tables`: (subspaces, dims, padded), padded to a multiple of 16 codewords with anything.
struct PqBooks {
    int64_t subspaces, dims, codewords, padded;
    const float* codebooks;
    bool squared;
};

constexpr int kPqTile = 8; // codewords of a tile
constexpr int kPqAssigned = 32; // rows assigned together, at most

// One subspace's codewords for `pq_assign`.
struct PqCodebook {
    int64_t dims, codewords, padded;
    const float* canonical; // (dims, padded), padding codewords infinite
    const float* center; // dims: any point; distances are taken from rows and codewords minus the center
    const float* tiles; // per 8 centered codewords: half their squared norms, tags (their numbers, as bits), (dims, 8) elements;
    // padding codewords are far away
    float radius; // largest norm of a centered codeword
};

// Rows that are assigned once more after codewords have moved, in blocks; see kernels/pq_revisit.h. A block is filled up with a row of its own.
struct PqBlocks {
    const float* rows; // as they are
    int64_t stride;
    const int32_t* numbers; // (blocks, rows of a block): which these are
    const float* centered; // (blocks, dims, rows of a block): the codebook's center minus them
    float* distances; // (blocks, rows of a block): to their nearest codewords, as far as they were known
    float* gaps; // (blocks, groups rounded up to a multiple of 16): 0 or less if nothing is known
    const float* moves; // per group of codewords, as they come in tiles: no less than how far one of them moved, and what rounding adds
};

// What `pq_descend` lowers: the loss of rows and their codes whose errors along the row count 1 + extra times.
struct PqLoss {
    int64_t subspaces, codewords, dims;
    const float* codebooks; // (subspaces, codewords, dims)
    const float* tiles; // per subspace and 8 codewords: their squared lengths, (dims, 8) elements; padding codewords are infinitely long
    float extra;
    int64_t sweeps;
};

constexpr int kMaxShapes = 4;

// Shapes by rising number of queries; unused ones have queries == 0.
struct Family {
    Shape shapes[kMaxShapes];
};

// Codes turned for batches: 32 rows beside each other in the lanes of a register, one column of the rows after the other.
struct TurnedCodes {
    Family family; // no shapes where rows in order are as good
    int32_t least; // queries from which on turning pays
    int64_t (*row_bytes)(int64_t width); // that a turned row takes; 0: too wide for the counters
    // Replaces the block's piece by its turned rows in `out`, of row_bytes * (rows rounded up to 32) bytes and 64-byte aligned.
    // Blocks of turned rows start at multiples of 32.
    void (*turn)(Block*, uint8_t* out);
};

// `pq_assign` of rows that were assigned before.
struct Revisited {
    int32_t rows, group; // rows of a block, and codewords of a group
    // of blocks first..last; workspace: rows floats for every group
    void (*assign)(const PqCodebook* codebook, const PqBlocks* blocks, int64_t first, int64_t last, float* workspace, int32_t* out);
};

struct KernelTable {
    asx_kernels c;
    uint64_t requires_cpu; // bits of ops/cpu.h, derived from the compiler's macros in the target's unit

    Family dense[kKinds]; // float queries. A kind whose tiles are missing is unpacked to float32 by ops
    Family integer7; // int8 queries in -64..63
    Family integer8; // any int8 queries
    Family hamming; // few queries, rows in order
    TurnedCodes hamming_turned;
    Family pq[2]; // 4 bits, 8 bits

    // canonical sums of one query against `count` rows named by number: ip, or l2 if `squared`
    void (*canonical[kKinds])(const Piece*, int32_t n_pieces, const float* query, const int64_t* rows, int64_t count, bool squared,
                              float* out);
    // canonical norms of rows first .. first+count in float64
    void (*norms[kKinds])(const Piece*, int32_t n_pieces, int64_t first, int64_t count, double* out);
    // sums of squares of the block's rows in any order
    void (*squares[kKinds])(const Block*);
    // scale, bias and slack from `squares`; or from known canonical norms
    void (*dense_terms)(const Block*, const float* norms);
    void (*unpack[kKinds])(const Piece*, int64_t rows, float* out, int64_t out_stride);

    // Runs of rows, one after the other, for one query that was packed by itself; without scales. Survivors name their run instead of a query.
    // Returns how many runs are finished: all of them, or fewer when the survivor buffer might not hold the next one.
    int64_t (*pq_runs[2])(const PqRun* runs, int64_t count, int64_t subspaces, const void* packed, float threshold, Survivors*);

    // out[q * out_stride ...] (subspaces, codewords) of queries (subspaces * dims) `stride` floats apart; whether all entries are finite. See
    // backends/protocol.py for the order of summation.
    bool (*pq_tables)(const PqBooks* books, const float* queries, int64_t stride, int64_t count, float* out, int64_t out_stride);
    // rounds tables (count, subspaces, entries) in place: see backends/protocol.py; lows: subspaces floats to work in
    void (*pq_whole)(float* tables, int64_t count, int64_t subspaces, int64_t entries, float* lows, double* base, double* step);
    // nearest codewords; workspace: kPqAssigned * dims floats
    void (*pq_assign)(const PqCodebook* codebook, const float* rows, int64_t stride, int64_t count, float* workspace, int32_t* out,
                      int64_t out_stride);
    Revisited pq_revisited;
    // lowers the loss of rows of unit length, `width` elements of a stride each; workspace: kPqAssigned * subspaces * (dims + 3) floats
    void (*pq_descend)(const PqLoss* loss, const float* units, int64_t width, int64_t stride, const float* lengths, int64_t count,
                       float* workspace, int32_t* codes);

    // canonical products of queries (n_queries, dims) with rows (count, dims), float32 both: out[query * out_stride + row]
    void (*products)(const float* queries, int64_t n_queries, const float* rows, int64_t count, int64_t dims, float* out,
                     int64_t out_stride);
};

// What a target publishes that is another one but for its scans of bfloat16. Its whole table is made of both where targets are listed.
struct DenseBFloat16 {
    const char* target;
    uint64_t requires_cpu;
    Family dense;
};

} // namespace asx
