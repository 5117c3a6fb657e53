#include "bindings/target.h"

#include <algorithm>
#include <limits>

#include "bindings/cascade.h"
#include "bindings/plain.h"
#include "ops/assigner.h"
#include "ops/codes.h"
#include "ops/cpu.h"
#include "ops/hadamard.h"
#include "ops/targets.h"

namespace asx {

Lists lists_of(const py::array& candidates, int64_t queries, int64_t rows) {
    const int64_t* p = contiguous<int64_t>(candidates, 2, "candidates");
    require(candidates.shape(0) == queries, "candidates: expected one list per query");
    for (py::ssize_t i = 0; i < candidates.size(); ++i) require(p[i] < rows, "candidates: expected row numbers");
    return {p, candidates.shape(1)};
}

namespace {

IntegerMetric integer_metric_of(const std::string& name) {
    if (name == "ip" || name == "ip_scaled") return IntegerMetric::ip;
    if (name == "l2" || name == "l2_scaled") return IntegerMetric::l2;
    require(name == "l2_exact", "metric: expected ip, l2, ip_scaled, l2_scaled or l2_exact");
    return IntegerMetric::l2_exact;
}

}  // namespace

std::shared_ptr<IntegerProblem> integer_problem(const Target& self, const PyRows& rows, const py::array& codes, const py::array& factors,
                                                const py::array& offsets, const std::string& metric_name, const double* margins,
                                                bool scan) {
    const IntegerMetric metric = integer_metric_of(metric_name);
    const int8_t* c = queries_of<int8_t>(codes, width_of(rows), "codes");
    const float *f = per_query<float>(factors, codes.shape(0), "factors"), *o = per_query<float>(offsets, codes.shape(0), "offsets");
    require(rows.rows->kind() == kInt8, "rows: expected int8");
    const bool scaled = metric_name == "ip_scaled" || metric_name == "l2_scaled";
    require(!scaled || !margins, "bound: weights are scales here, and leave no margins");
    for (const Chunk& chunk : rows.rows->chunks()) {
        require(metric != IntegerMetric::l2 || chunk.norms, "rows: l2 needs their sums of squares");
        require(!scaled || chunk.weights || !chunk.rows, "rows: scaled metrics need their scales as weights");
    }
    return without_gil<IntegerProblem>(*self.table, rows.rows, c, codes.shape(0), f, o, metric, scaled, margins, scan);
}

std::shared_ptr<PqProblem> pq_problem(const Target& self, const PyRows& rows, const py::array& tables, bool largest,
                                      const py::object& scaling, bool scan) {
    const float* t = contiguous<float>(tables, 3, "tables");
    require(tables.shape(1) == rows.subspaces && tables.shape(2) == int64_t{1} << rows.bits,
            "tables: expected shape (queries, subspaces, 2**bits)");
    ScoreScaling terms;
    if (!scaling.is_none()) {
        const auto values = [&](const char* name) {
            const auto a = scaling.attr(name).cast<py::array>();
            const double* p = per_query<double>(a, tables.shape(0), name);
            return std::vector<double>(p, p + tables.shape(0));
        };
        terms = {values("offset"), values("base"), values("step"), values("weight")};
        require(rows.bits == 4, "rows: only codes of 4 bits are scaled");
        for (const Chunk& chunk : rows.rows->chunks())
            require(chunk.weights && (largest || chunk.norms), "rows: scaled sums need scales, and distances terms");
    }
    return without_gil<PqProblem>(*self.table, rows.rows, rows.subspaces, rows.bits, t, tables.shape(0), largest, std::move(terms), scan);
}

std::shared_ptr<ListProblem> list_problem(const Target& self, const PyRows& rows, const py::array& tables, bool largest) {
    require(rows.centroids != nullptr, "rows: expected those of lists");
    return std::make_shared<ListProblem>(rows.rows, pq_problem(self, *rows.centroids, tables, largest, py::none(), false));
}

namespace {

struct Rescored {
    py::array_t<float> scores;
    py::array_t<int64_t> rows;
    int64_t bad_row;
};

Rescored rescored(const Problem& problem, const py::array& candidates, int64_t k) {
    const Lists lists = lists_of(candidates, problem.queries(), problem.rows().size());
    Rescored out = {py::array_t<float>({problem.queries(), k}), py::array_t<int64_t>({problem.queries(), k}), -1};
    float* scores = out.scores.mutable_data();
    int64_t* rows = out.rows.mutable_data();
    {
        const py::gil_scoped_release free;
        out.bad_row = rescore(problem, lists.data, lists.width, k, scores, rows);
    }
    return out;
}

py::tuple pair_of(const Rescored& best) { return py::make_tuple(best.scores, best.rows); }

// --- dense ------------------------------------------------------------------------------------------------------------

PyScan dense_scan(const Target& self, const PyRows& rows, const py::array& queries, int64_t k, const std::string& metric,
                  const py::object& allowed) {
    const float* q = queries_of<float>(queries, width_of(rows), "queries");
    return PyScan::make(without_gil<DenseProblem>(*self.table, rows.rows, q, queries.shape(0), metric_of(metric), true), k, allowed,
                        rows.owners);
}

// Everything at once: for a thousand rows, four calls from Python would take a third of the time. `problem` makes it of the rows. Returns the first bad
// row, or -1.
template <class MakeProblem>
int64_t search_at_once(Rows rows, MakeProblem problem, int64_t k, float* scores, int64_t* found) {
    const py::gil_scoped_release free;
    const auto all = std::make_shared<const Rows>(std::move(rows));
    TopK scan(problem(all), k, {});
    scan.run(0, all->visits());
    if (scan.bad_row() < 0) scan.finish(scores, found);
    return scan.bad_row();
}

Rows rows_of_piece(Kind kind, const Piece& piece, int64_t count) {
    Chunk chunk;
    chunk.pieces.push_back(piece);
    chunk.rows = count;
    return Rows(kind, {piece.width}, {chunk}, nullptr);
}

// What `search_at_once` makes a problem with.
auto dense_problem_maker(const Target& self, const float* queries, int64_t count, Metric metric) {
    return [=, &table = *self.table](std::shared_ptr<const Rows> rows) {
        return std::make_shared<DenseProblem>(table, std::move(rows), queries, count, metric, true);
    };
}

py::tuple dense_top_k(const Target& self, const std::string& kind_name, const py::array& rows, const py::array& queries, int64_t k,
                      const std::string& metric_name) {
    const Kind kind = kind_of(kind_name);
    const Metric metric = metric_of(metric_name);
    const Piece piece = piece_of(rows, kind == kFloat32 ? 4 : kind == kInt8 ? 1 : 2);
    const float* q = queries_of<float>(queries, rows.shape(1), "queries");
    require(k >= 0, "k: expected a number of rows");
    const int64_t count = queries.shape(0);
    py::array_t<float> scores({count, k});
    py::array_t<int64_t> found({count, k});
    const int64_t bad = search_at_once(rows_of_piece(kind, piece, rows.shape(0)), dense_problem_maker(self, q, count, metric), k,
                                       scores.mutable_data(), found.mutable_data());
    return py::make_tuple(scores, found, bad);
}

constexpr int64_t most_plain_queries = 32;

// The rows of a user's matrix, used in place; nothing if they are out of the ordinary, or wrong.
struct PlainRows {
    Piece piece = {};
    int64_t count = 0;
};

template <class T> PlainRows plain_rows(py::handle value, int64_t most_width) {
    if (!is_plain<T>(value)) return {};
    const auto x = py::reinterpret_borrow<py::array>(value);
    if (x.ndim() != 2) return {};
    const int64_t width = x.shape(1);
    if (width < 1 || width > most_width || (width > 1 && x.strides(1) != static_cast<py::ssize_t>(sizeof(T)))) return {};
    return {{static_cast<const uint8_t*>(x.data()), x.strides(0), width}, x.shape(0)};
}

// (rows, scores) of the k best, or of all rows if these are fewer; None if one is bad.
template <class T, class MakeProblem> py::object plain_found(const PlainQueries<T>& queries, Rows rows, MakeProblem problem, int64_t k) {
    const int64_t kept = std::min(k, rows.size());
    const std::vector<py::ssize_t> shape = queries.shape(kept);
    py::array_t<float> scores(shape);
    py::array_t<int64_t> found(shape);
    if (search_at_once(std::move(rows), problem, kept, scores.mutable_data(), found.mutable_data()) >= 0) return py::none();
    return py::make_tuple(found, scores);
}

// None if arguments are out of the ordinary, or wrong, or the work is not small.
py::object plain_top_k(const Target& self, py::handle queries, py::handle rows, py::handle k, py::handle metric, int64_t most) {
    constexpr int64_t most_dims = 32768;
    const int64_t wanted = plain_count(k);
    if (wanted < 1 || !PyUnicode_CheckExact(metric.ptr())) return py::none();
    const PlainRows x = plain_rows<float>(rows, most_dims);
    if (x.count == 0) return py::none();
    const int64_t dims = x.piece.width;
    const PlainQueries q = plain_queries<float>(queries, dims, std::min(most_plain_queries, most / std::max<int64_t>(16, dims) / x.count));
    if (q.count == 0) return py::none();
    const auto is = [&](const char* name) { return PyUnicode_CompareWithASCIIString(metric.ptr(), name) == 0; };
    if (!is("ip") && !is("cosine") && !is("l2")) return py::none();
    const Metric by = is("ip") ? kIp : is("l2") ? kL2 : kCosine;
    return plain_found(q, rows_of_piece(kFloat32, x.piece, x.count), dense_problem_maker(self, q.data, q.count, by), wanted);
}

py::tuple dense_rescore(const Target& self, const PyRows& rows, const py::array& queries, const py::array& candidates, int64_t k,
                        const std::string& metric) {
    const float* q = queries_of<float>(queries, width_of(rows), "queries");
    const auto problem = without_gil<DenseProblem>(*self.table, rows.rows, q, queries.shape(0), metric_of(metric), false);
    const Rescored best = rescored(*problem, candidates, k);
    return py::make_tuple(best.scores, best.rows, best.bad_row);
}

int64_t dense_dot_op(const Target& self, const PyRows& rows, const py::array& queries, py::array out, int64_t first, int64_t last) {
    const float* q = queries_of<float>(queries, width_of(rows), "queries");
    float* to = writable<float>(out, 2, "out");
    require(out.shape(0) == queries.shape(0) && out.shape(1) == rows.rows->size() && 0 <= first && first <= last &&
                last <= rows.rows->size(),
            "out: expected shape (queries, rows)");
    const py::gil_scoped_release free;
    return dense_dot(*self.table, *rows.rows, q, queries.shape(0), first, last, to + first, rows.rows->size());
}

void dense_norms(const Target& self, const std::string& kind, const py::sequence& pieces, py::array out, bool upward) {
    const py::object chunk = py::module_::import("types").attr("SimpleNamespace")(py::arg("pieces") = pieces, py::arg("norms") = py::none(),
                                                                                  py::arg("weights") = py::none());
    const PyRows rows = dense_rows(kind, py::make_tuple(chunk), py::none());
    float* to = writable<float>(out, 1, "out");
    require(out.size() == rows.rows->size(), "out: expected one value per row");
    const py::gil_scoped_release free;
    for (const Chunk& c : rows.rows->chunks()) row_norms(*self.table, rows.rows->kind(), c, upward, to);
}

void dense_unit(const Target& self, const py::array& queries, py::array out) {
    const float* q = contiguous<float>(queries, 2, "queries");
    float* to = writable<float>(out, 2, "out");
    require(out.shape(0) == queries.shape(0) && out.shape(1) == queries.shape(1), "out: expected the shape of the queries");
    const py::gil_scoped_release free;
    unit_queries(*self.table, q, queries.shape(0), queries.shape(1), to);
}

void dense_map(const Target& self, const py::array& queries, const py::array& matrix, py::array out) {
    const float* rows = contiguous<float>(matrix, 2, "matrix");
    const float* q = queries_of<float>(queries, matrix.shape(1), "queries");
    float* to = writable<float>(out, 2, "out");
    require(out.shape(0) == queries.shape(0) && out.shape(1) == matrix.shape(0), "out: expected shape (queries, rows of the matrix)");
    const py::gil_scoped_release free;
    map_queries(*self.table, q, queries.shape(0), rows, matrix.shape(0), matrix.shape(1), to);
}

void hadamard_op(const Target&, py::array rows) {
    require(py::isinstance<py::array_t<float>>(rows) && rows.ndim() == 2 && rows.writeable(), "rows: expected a writable float32 matrix");
    const int64_t count = rows.shape(0), size = rows.shape(1), stride = rows.strides(0) / 4;
    require(size > 0 && (size & (size - 1)) == 0, "rows: expected a power of two of dims");
    if (count == 0) return; // strides of nothing say nothing
    require((size == 1 || rows.strides(1) == 4) && (count == 1 || (rows.strides(0) % 4 == 0 && stride >= size)),
            "rows: expected contiguous ones that do not overlap");
    auto* to = static_cast<float*>(rows.mutable_data());
    const py::gil_scoped_release free;
    hadamard(to, stride, count, size);
}

// --- int8 codes -----------------------------------------------------------------------------------------------------------

void integer_queries_op(const Target&, const py::array& queries, const py::array& scales, py::array codes, py::array steps) {
    const float* s = contiguous<float>(scales, 1, "scales");
    const float* q = queries_of<float>(queries, scales.size(), "queries");
    auto* to = writable<int8_t>(codes, 2, "codes");
    auto* to_steps = writable<double>(steps, 1, "steps");
    require(codes.shape(0) == queries.shape(0) && codes.shape(1) == queries.shape(1), "codes: expected the shape of the queries");
    require(steps.size() == queries.shape(0), "steps: expected one value per query");
    const py::gil_scoped_release free;
    integer_queries(q, queries.shape(0), queries.shape(1), s, to, to_steps);
}

// --- binary codes -----------------------------------------------------------------------------------------------------------

PyScan hamming_scan(const Target& self, const PyRows& rows, const py::array& codes, int64_t k, const py::object& allowed) {
    const uint8_t* c = queries_of<uint8_t>(codes, width_of(rows), "codes");
    return PyScan::make(without_gil<HammingProblem>(*self.table, rows.rows, c, codes.shape(0), true), k, allowed, rows.owners);
}

// As `plain_top_k`, of packed codes; `most` bytes.
py::object plain_hamming_top_k(const Target& self, py::handle queries, py::handle codes, py::handle k, int64_t most) {
    const int64_t wanted = plain_count(k);
    const PlainRows x = wanted < 1 ? PlainRows() : plain_rows<uint8_t>(codes, most);
    if (x.count == 0) return py::none();
    const int64_t width = x.piece.width;
    const PlainQueries q = plain_queries<uint8_t>(queries, width, std::min(most_plain_queries, most / width / x.count));
    if (q.count == 0) return py::none();
    Rows rows = rows_of_piece(kInt8, x.piece, x.count);
    rows.last_word = last_word_mask(8 * width);
    const auto problem = [&](std::shared_ptr<const Rows> all) {
        return std::make_shared<HammingProblem>(*self.table, std::move(all), q.data, q.count, true);
    };
    return plain_found(q, std::move(rows), problem, wanted);
}

py::tuple hamming_rescore(const Target& self, const PyRows& rows, const py::array& codes, const py::array& candidates, int64_t k) {
    const uint8_t* c = queries_of<uint8_t>(codes, width_of(rows), "codes");
    return pair_of(rescored(*without_gil<HammingProblem>(*self.table, rows.rows, c, codes.shape(0), false), candidates, k));
}

void hamming_distances_op(const Target& self, const PyRows& rows, const py::array& codes, py::array out, int64_t first, int64_t last) {
    const uint8_t* c = queries_of<uint8_t>(codes, width_of(rows), "codes");
    auto* to = writable<int32_t>(out, 2, "out");
    require(out.shape(0) == codes.shape(0) && out.shape(1) == rows.rows->size() && 0 <= first && first <= last && last <= rows.rows->size(),
            "out: expected shape (queries, rows)");
    const py::gil_scoped_release free;
    hamming_distances(*self.table, *rows.rows, c, codes.shape(0), first, last, to + first, rows.rows->size());
}

// --- product quantization ---------------------------------------------------------------------------------------------------

Codebooks codebooks_of(const py::array& codebooks) {
    const float* c = contiguous<float>(codebooks, 3, "codebooks");
    return {c, codebooks.shape(0), codebooks.shape(1), codebooks.shape(2)};
}

bool pq_tables(const Target& self, const py::array& queries, const py::array& codebooks, bool squared, py::array out) {
    const float* q = contiguous<float>(queries, 2, "queries");
    const Codebooks books = codebooks_of(codebooks);
    float* to = writable<float>(out, 3, "out");
    require(queries.shape(1) <= codebooks.shape(0) * codebooks.shape(2), "queries: wider than the codebooks");
    require(out.shape(0) == queries.shape(0) && out.shape(1) == codebooks.shape(0) && out.shape(2) == codebooks.shape(1),
            "out: expected shape (queries, subspaces, codewords)");
    const py::gil_scoped_release free;
    return books.tables(*self.table, q, queries.shape(0), queries.shape(1), squared, to);
}

void pq_whole(const Target& self, py::array tables, py::array base, py::array step) {
    float* t = writable<float>(tables, 3, "tables");
    double *b = writable<double>(base, 1, "base"), *s = writable<double>(step, 1, "step");
    require(base.size() == tables.shape(0) && step.size() == tables.shape(0), "base, step: expected one value per query");
    require(tables.shape(2) > 0, "tables: expected entries");
    const py::gil_scoped_release free;
    make_whole(*self.table, t, tables.shape(0), tables.shape(1), tables.shape(2), b, s);
}

void pq_assign(const Target& self, const py::array& vectors, const py::array& codebooks, py::array out) {
    const float* v = contiguous<float>(vectors, 2, "vectors");
    const Codebooks books = codebooks_of(codebooks);
    auto* to = writable<int32_t>(out, 2, "out");
    require(vectors.shape(1) <= codebooks.shape(0) * codebooks.shape(2), "vectors: wider than the codebooks");
    require(out.shape(0) == vectors.shape(0) && out.shape(1) == codebooks.shape(0), "out: expected shape (vectors, subspaces)");
    const py::gil_scoped_release free;
    books.assign(*self.table, v, vectors.shape(1), vectors.shape(0), vectors.shape(1), to);
}

struct PyAssigner {
    std::shared_ptr<Assigner> assigner;
    py::array points; // are read
};

py::object pq_assigner(const Target& self, const py::array& points, int64_t codewords) {
    const float* p = contiguous<float>(points, 2, "points");
    require(codewords > 0, "codewords: expected some");
    if (codewords > Assigner::most_codewords || points.shape(0) > std::numeric_limits<int32_t>::max()) return py::none();
    return py::cast(PyAssigner{without_gil<Assigner>(*self.table, p, points.shape(0), points.shape(1), codewords), points});
}

void move_assigner(const PyAssigner& self, const py::array& codebook, const py::array& nearest) {
    Assigner& assigner = *self.assigner;
    const float* c = contiguous<float>(codebook, 2, "codebook");
    const int32_t* n = contiguous<int32_t>(nearest, 1, "nearest");
    require(codebook.shape(0) == assigner.codewords() && codebook.shape(1) == self.points.shape(1),
            "codebook: expected shape (codewords, width of the points)");
    require(nearest.size() == self.points.shape(0), "nearest: expected one codeword per point");
    for (py::ssize_t i = 0; i < nearest.size() && assigner.ready(); ++i)
        require(n[i] >= 0 && n[i] < assigner.codewords(), "nearest: expected codewords");
    const py::gil_scoped_release free;
    assigner.move(c, n);
}

void assign_again(const PyAssigner& self, int64_t first, int64_t last, py::array nearest) {
    Assigner& assigner = *self.assigner;
    auto* n = writable<int32_t>(nearest, 1, "nearest");
    require(nearest.size() == self.points.shape(0), "nearest: expected one codeword per point");
    require(0 <= first && first <= last && last <= assigner.blocks(), "first, last: expected blocks");
    require(assigner.ready(), "assign: expected a codebook first");
    const py::gil_scoped_release free;
    assigner.assign(first, last, n);
}

void centroid_sums_op(const Target&, const py::array& points, const py::array& nearest, py::array sums, py::array counts) {
    require(py::isinstance<py::array>(points) && py::isinstance<py::array_t<float>>(points) && points.ndim() == 2 &&
                (points.size() == 0 || points.shape(1) == 1 || points.strides(1) == 4),
            "points: expected a float32 matrix with a contiguous last axis");
    const int32_t* n = contiguous<int32_t>(nearest, 1, "nearest");
    auto* s = writable<double>(sums, 2, "sums");
    auto* c = writable<int64_t>(counts, 1, "counts");
    const int64_t count = points.shape(0), width = points.shape(1), stride = points.strides(0), codewords = sums.shape(0);
    require(nearest.size() == count, "nearest: expected one codeword per point");
    require(sums.shape(1) == width, "sums: expected the width of the points");
    require(counts.size() == codewords, "counts: expected one number per codeword");
    for (int64_t i = 0; i < count; ++i) require(n[i] >= 0 && n[i] < codewords, "nearest: expected codewords");
    const auto* from = static_cast<const uint8_t*>(points.data());
    const py::gil_scoped_release free;
    centroid_sums(from, stride, count, width, n, codewords, s, c);
}

// As `plain_top_k`, of packed codes; `most` codewords that are looked up, of 16 each.
py::object plain_pq_top_k(const Target& self, py::handle queries, const py::array& packed, int64_t rows, const py::array& codebooks,
                          int64_t dims, bool squared, py::handle k, int64_t most) {
    const int64_t wanted = plain_count(k), subspaces = codebooks.shape(0), codewords = codebooks.shape(1);
    const Codebooks books = codebooks_of(codebooks);
    const int bits = codewords == 16 ? 4 : 8;
    require(codewords == int64_t{1} << bits && 0 <= dims && dims <= subspaces * codebooks.shape(2),
            "codebooks: expected 16 or 256 codewords of all dims");
    const Chunk chunk = pq_chunk(packed, rows, subspaces, bits);
    if (wanted < 1 || rows < 1) return py::none();
    const PlainQueries q = plain_queries<float>(queries, dims, std::min(most_plain_queries, most / rows / (subspaces * codewords / 16)));
    if (q.count == 0) return py::none();
    std::vector<float> tables(static_cast<size_t>(q.count * subspaces * codewords));
    const auto finite = [&] {
        const py::gil_scoped_release free;
        return books.tables(*self.table, q.data, q.count, dims, squared, tables.data());
    };
    if (!finite()) return py::none();
    const auto problem = [&](std::shared_ptr<const Rows> all) {
        return std::make_shared<PqProblem>(*self.table, std::move(all), subspaces, bits, tables.data(), q.count, !squared, ScoreScaling(),
                                           true);
    };
    return plain_found(q, Rows(kInt8, {subspaces}, {chunk}, nullptr), problem, wanted);
}

void pq_descend(const Target& self, const py::array& units, const py::array& lengths, const py::array& codebooks, float extra,
                int64_t sweeps, py::array codes) {
    const float* u = contiguous<float>(units, 2, "units");
    const float* l = per_query<float>(lengths, units.shape(0), "lengths");
    const Codebooks books = codebooks_of(codebooks);
    auto* to = writable<int32_t>(codes, 2, "codes");
    require(units.shape(1) <= codebooks.shape(0) * codebooks.shape(2), "units: wider than the codebooks");
    require(codes.shape(0) == units.shape(0) && codes.shape(1) == codebooks.shape(0), "codes: expected shape (units, subspaces)");
    for (py::ssize_t i = 0; i < codes.size(); ++i) require(to[i] >= 0 && to[i] < codebooks.shape(1), "codes: expected codewords");
    const py::gil_scoped_release free;
    books.descend(*self.table, u, l, units.shape(0), units.shape(1), extra, sweeps, to);
}

void pq_pack(const Target&, const py::array& codes, int, py::array out) {
    require(codes.ndim() == 2 && codes.itemsize() == 1 && (codes.size() == 0 || codes.shape(1) <= 1 || codes.strides(1) == 1),
            "codes: expected a uint8 matrix with a contiguous last axis");
    auto* to = writable<uint8_t>(out, 3, "out");
    require(out.shape(0) == (codes.shape(0) + kPqBlock - 1) / kPqBlock && out.shape(1) == codes.shape(1) && out.shape(2) == kPqBlock,
            "out: expected shape (blocks of 64 rows, code bytes, 64)");
    const auto* from = static_cast<const uint8_t*>(codes.data());
    const int64_t stride = codes.strides(0), rows = codes.shape(0), bytes = codes.shape(1);
    const py::gil_scoped_release free;
    pack_codes(from, stride, rows, bytes, to);
}

void pq_unpack(const Target&, const py::array& packed, int, py::array out) {
    const uint8_t* from = contiguous<uint8_t>(packed, 3, "packed");
    auto* to = writable<uint8_t>(out, 2, "out");
    require(packed.shape(0) == (out.shape(0) + kPqBlock - 1) / kPqBlock && packed.shape(1) == out.shape(1),
            "out: expected shape (rows, code bytes)");
    const py::gil_scoped_release free;
    unpack_codes(from, out.shape(0), out.shape(1), to);
}

std::uintptr_t kernel_address(const Target& self, const std::string& name) {
    const asx_kernels& c = self.table->c;
    const auto address = [](auto function) { return reinterpret_cast<std::uintptr_t>(function); };
    if (name == "kernels") return address(&c);
    if (name == "dot_f32") return address(c.dot_f32);
    if (name == "l2_f32") return address(c.l2_f32);
    if (name == "cosine_f32") return address(c.cosine_f32);
    if (name == "dot_f16") return address(c.dot_f16);
    if (name == "l2_f16") return address(c.l2_f16);
    if (name == "dot_bf16") return address(c.dot_bf16);
    if (name == "l2_bf16") return address(c.l2_bf16);
    if (name == "dot_i8") return address(c.dot_i8);
    if (name == "hamming_u8") return address(c.hamming_u8);
    throw py::value_error(
        "kernel: expected one of kernels, dot_f32, l2_f32, cosine_f32, dot_f16, l2_f16, dot_bf16, l2_bf16, dot_i8, hamming_u8, got '" +
        name + "'");
}

}  // namespace

void register_targets(py::module_& m) {
    using py::arg;
    const auto none = py::none();
    py::class_<PyAssigner>(m, "Assigner", "See backends/protocol.py.")
        .def_property_readonly("blocks", [](const PyAssigner& self) { return self.assigner->blocks(); })
        .def("move", &move_assigner, arg("codebook"), arg("nearest"))
        .def("assign", &assign_again, arg("first"), arg("last"), arg("nearest"));
    py::class_<Target> target(m, "Target", "The operations on the kernels of one target.");
    register_cascades(m, target);
    register_sources(m, target);
    target.def_property_readonly("name", [](const Target& self) { return self.table->c.target; })
        .def_property_readonly("passes_by", [](const Target&) { return true; })
        .def_property_readonly("missing", [](const Target& self) { return feature_names(self.table->requires_cpu & ~cpu_features()); })
        .def("kernel_address", &kernel_address, arg("name"))
        .def(
            "dense_rows",
            [](const Target&, const std::string& kind, const py::sequence& chunks, const py::object& ids) {
                return dense_rows(kind, chunks, ids);
            },
            arg("kind"), arg("chunks"), arg("ids") = none)
        .def("dense_scan", &dense_scan, arg("rows"), arg("queries"), arg("k"), arg("metric"), arg("allowed") = none)
        .def("dense_top_k", &dense_top_k, arg("kind"), arg("rows"), arg("queries"), arg("k"), arg("metric"))
        .def("plain_top_k", &plain_top_k, arg("queries"), arg("rows"), arg("k"), arg("metric"), arg("most"))
        .def("dense_rescore", &dense_rescore, arg("rows"), arg("queries"), arg("candidates"), arg("k"), arg("metric"))
        .def("dense_dot", &dense_dot_op, arg("rows"), arg("queries"), arg("out"), arg("first"), arg("last"))
        .def("dense_norms", &dense_norms, arg("kind"), arg("pieces"), arg("out"), arg("upward") = false)
        .def("dense_unit", &dense_unit, arg("queries"), arg("out"))
        .def("dense_map", &dense_map, arg("queries"), arg("matrix"), arg("out"))
        .def("hadamard", &hadamard_op, arg("rows"))
        .def("integer_queries", &integer_queries_op, arg("queries"), arg("scales"), arg("codes"), arg("steps"))
        .def(
            "integer_scan",
            [](const Target& self, const PyRows& rows, const py::array& codes, const py::array& factors, const py::array& offsets,
               int64_t k, const std::string& metric, const py::object& allowed) {
                return PyScan::make(integer_problem(self, rows, codes, factors, offsets, metric, nullptr, true), k, allowed, rows.owners);
            },
            arg("rows"), arg("codes"), arg("factors"), arg("offsets"), arg("k"), arg("metric"), arg("allowed") = none)
        .def(
            "integer_rescore",
            [](const Target& self, const PyRows& rows, const py::array& codes, const py::array& factors, const py::array& offsets,
               const py::array& candidates, int64_t k, const std::string& metric) {
                return pair_of(rescored(*integer_problem(self, rows, codes, factors, offsets, metric, nullptr, false), candidates, k));
            },
            arg("rows"), arg("codes"), arg("factors"), arg("offsets"), arg("candidates"), arg("k"), arg("metric"))
        .def(
            "bit_rows",
            [](const Target&, const py::sequence& chunks, int64_t bits, const py::object& ids) { return bit_rows(chunks, bits, ids); },
            arg("chunks"), arg("bits"), arg("ids") = none)
        .def("hamming_scan", &hamming_scan, arg("rows"), arg("codes"), arg("k"), arg("allowed") = none)
        .def("plain_hamming_top_k", &plain_hamming_top_k, arg("queries"), arg("codes"), arg("k"), arg("most"))
        .def("hamming_rescore", &hamming_rescore, arg("rows"), arg("codes"), arg("candidates"), arg("k"))
        .def("hamming_distances", &hamming_distances_op, arg("rows"), arg("codes"), arg("out"), arg("first"), arg("last"))
        .def(
            "list_rows",
            [](const Target&, const py::sequence& chunks, const PyRows& centroids, const py::object& ids) {
                return list_rows(chunks, centroids, ids);
            },
            arg("chunks"), arg("centroids"), arg("ids") = py::none())
        .def(
            "list_rescore",
            [](const Target& self, const PyRows& rows, const py::array& tables, const py::array& candidates, int64_t k, bool largest) {
                return pair_of(rescored(*list_problem(self, rows, tables, largest), candidates, k));
            },
            arg("rows"), arg("tables"), arg("candidates"), arg("k"), arg("largest"))
        .def(
            "pq_rows",
            [](const Target&, const py::sequence& chunks, int64_t subspaces, int bits, const py::object& ids) {
                return pq_rows(chunks, subspaces, bits, ids);
            },
            arg("chunks"), arg("subspaces"), arg("bits"), arg("ids") = none)
        .def(
            "pq_scan",
            [](const Target& self, const PyRows& rows, const py::array& tables, int64_t k, bool largest, const py::object& allowed,
               const py::object& scaling) {
                return PyScan::make(pq_problem(self, rows, tables, largest, scaling, true), k, allowed,
                                    py::make_tuple(rows.owners, tables));
            },
            arg("rows"), arg("tables"), arg("k"), arg("largest"), arg("allowed") = none, arg("scaling") = none)
        .def(
            "pq_rescore",
            [](const Target& self, const PyRows& rows, const py::array& tables, const py::array& candidates, int64_t k, bool largest,
               const py::object& scaling) {
                return pair_of(rescored(*pq_problem(self, rows, tables, largest, scaling, false), candidates, k));
            },
            arg("rows"), arg("tables"), arg("candidates"), arg("k"), arg("largest"), arg("scaling") = none)
        .def("plain_pq_top_k", &plain_pq_top_k, arg("queries"), arg("packed"), arg("rows"), arg("codebooks"), arg("dims"), arg("squared"),
             arg("k"), arg("most"))
        .def("pq_tables", &pq_tables, arg("queries"), arg("codebooks"), arg("squared"), arg("out"))
        .def("pq_whole", &pq_whole, arg("tables"), arg("base"), arg("step"))
        .def("pq_assign", &pq_assign, arg("vectors"), arg("codebooks"), arg("out"))
        .def("pq_assigner", &pq_assigner, arg("points"), arg("codewords"))
        .def("centroid_sums", &centroid_sums_op, arg("points"), arg("nearest"), arg("sums"), arg("counts"))
        .def("pq_descend", &pq_descend, arg("units"), arg("lengths"), arg("codebooks"), arg("extra"), arg("sweeps"), arg("codes"))
        .def("pq_pack", &pq_pack, arg("codes"), arg("bits"), arg("out"))
        .def("pq_unpack", &pq_unpack, arg("packed"), arg("bits"), arg("out"));

    m.def(
        "targets",
        [] {
            py::list out;
            for (const KernelTable* table : targets()) out.append(Target{table});
            return out;
        },
        "All compiled targets, best first, whether or not this CPU can run them.");
}

}  // namespace asx
