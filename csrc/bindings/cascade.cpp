#include "bindings/cascade.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "ops/cascade.h"
#include "ops/codes.h"
#include "ops/listing.h"
#include "ops/source.h"

namespace asx {

namespace {

constexpr int64_t kEntering = 256;      // queries that are led to their lists together

struct PyLevel {
    Level level;
    py::object owners;
};

// What keys say of scores, from the `Bound` of the protocol: offsets, factors, and margins or None.
struct Bound {
    explicit Bound(const py::object& bound, int64_t queries)
        : offset(values(bound.attr("offset"), queries)), factor(values(bound.attr("factor"), queries)) {
        const py::object margins = bound.attr("margin");
        if (!margins.is_none()) margin = values(margins, queries);
    }
    static std::vector<double> values(const py::object& a, int64_t queries) {
        if (PyFloat_Check(a.ptr())) return std::vector<double>(static_cast<size_t>(queries), a.cast<double>());
        const double* p = per_query<double>(a.cast<py::array>(), queries, "bound");
        return {p, p + queries};
    }
    const double* margins() const { return margin.empty() ? nullptr : margin.data(); }
    PyLevel with(std::shared_ptr<const Problem> problem, py::object owners) && {
        return {{std::move(problem), std::move(offset), std::move(factor), std::move(margin)}, std::move(owners)};
    }

    std::vector<double> offset, factor, margin;
};

void require_weights(const PyRows& rows, const Bound& bound) {
    for (const Chunk& chunk : rows.rows->chunks())
        require(bound.margin.empty() || chunk.weights || !chunk.rows, "rows: margins need their weights");
}

PyLevel dense_level(const Target& self, const PyRows& rows, const py::array& queries, const std::string& metric, const py::object& bound,
                    bool scan) {
    const float* q = queries_of<float>(queries, width_of(rows), "queries");
    Bound b(bound, queries.shape(0));
    require(b.margin.empty(), "bound: canonical scores have no margins by row");
    return std::move(b).with(without_gil<DenseProblem>(*self.table, rows.rows, q, queries.shape(0), metric_of(metric), scan), rows.owners);
}

PyLevel prefix_level(const Target& self, const PyRows& rows, const py::array& queries, const py::array& squares, double largest,
                     const std::string& metric, const py::object& bound, bool scan) {
    const float* q = queries_of<float>(queries, width_of(rows), "queries");
    const double* s = per_query<double>(squares, queries.shape(0), "squares");
    Bound b(bound, queries.shape(0));
    require(!b.margin.empty(), "bound: prefixes need margins");
    require_weights(rows, b);
    for (const Chunk& chunk : rows.rows->chunks()) require(chunk.norms || !chunk.rows, "rows: prefixes need the norms of whole rows");
    return std::move(b).with(
        without_gil<PrefixProblem>(*self.table, rows.rows, q, queries.shape(0), metric_of(metric), s, b.margins(), largest, scan),
        rows.owners);
}

PyLevel integer_level(const Target& self, const PyRows& rows, const py::array& codes, const py::array& factors, const py::array& offsets,
                      const std::string& metric, const py::object& bound, bool scan) {
    Bound b(bound, codes.shape(0));
    require_weights(rows, b);
    return std::move(b).with(integer_problem(self, rows, codes, factors, offsets, metric, b.margins(), scan), rows.owners);
}

PyLevel hamming_level(const Target& self, const PyRows& rows, const py::array& codes, const py::object& bound, bool scan) {
    const uint8_t* c = queries_of<uint8_t>(codes, width_of(rows), "codes");
    Bound b(bound, codes.shape(0));
    require_weights(rows, b);
    return std::move(b).with(without_gil<HammingProblem>(*self.table, rows.rows, c, codes.shape(0), scan), rows.owners);
}

PyLevel pq_level(const Target& self, const PyRows& rows, const py::array& tables, bool largest, const py::object& bound, bool scan,
                 const py::object& scaling) {
    Bound b(bound, tables.shape(0));
    require_weights(rows, b);
    require(scaling.is_none() || b.margin.empty(), "bound: weights are scales here, and leave no margins");
    return std::move(b).with(pq_problem(self, rows, tables, largest, scaling, scan), py::make_tuple(rows.owners, tables));
}

PyLevel list_level(const Target& self, const PyRows& rows, const py::array& tables, bool largest, const py::object& bound) {
    Bound b(bound, tables.shape(0));
    require(b.margin.empty(), "bound: lists have no margins by row");
    return std::move(b).with(list_problem(self, rows, tables, largest), py::make_tuple(rows.owners, tables));
}

struct PyListing {
    std::shared_ptr<const Listing> listing;
    py::object owners; // of the memory that it was made from, so that nothing else can come to lie there
};

// None if there are too many rows.
py::object listing(const Target&, const PyRows& rows, const PyRows& codes, const py::object& before) {
    require(rows.centroids != nullptr, "rows: expected those of lists");
    require(codes.subspaces > 0, "codes: expected those of product quantization");
    require(codes.subspaces == rows.centroids->subspaces && codes.bits == rows.centroids->bits,
            "codes: expected the subspaces and bits of the centroids");
    const auto &a = rows.rows->chunks(), &b = codes.rows->chunks();
    require(a.size() == b.size(), "rows: expected the same chunks in both");
    for (size_t c = 0; c < a.size(); ++c) {
        require(a[c].rows == b[c].rows, "rows: expected the same chunks in both");
        require(!b[c].weights, "codes: expected rows without scales");
    }
    if (codes.rows->size() > Listing::kMostRows) return py::none();
    const Listing* known = before.is_none() ? nullptr : before.cast<const PyListing&>().listing.get();
    std::shared_ptr<const Listing> made;
    {
        const py::gil_scoped_release free;
        made = std::make_shared<const Listing>(codes.rows, *rows.rows, rows.centroids->rows->size(), known);
    }
    return py::cast(PyListing{std::move(made), py::make_tuple(rows.owners, codes.owners)});
}

// Whether the cascade begins with the codes of the listing, whose lists come second.
bool begins_with(const Cascade& cascade, const Listing& listing) {
    if (cascade.levels.size() < 2) return false;
    const auto* codes = dynamic_cast<const PqProblem*>(cascade.levels[0].problem.get());
    const auto* lists = dynamic_cast<const ListProblem*>(cascade.levels[1].problem.get());
    return codes && lists && &codes->rows() == &listing.codes() && lists->lists() == listing.lists();
}

struct PyCascade {
    std::shared_ptr<const Cascade> cascade;
    py::object owners;
};

PyCascade cascade_of(const py::sequence& levels, const PyLevel& judge, bool hard) {
    Cascade out;
    py::list owners;
    for (const py::handle& item : levels) {
        const auto& level = item.cast<const PyLevel&>();
        require(level.level.problem->queries() == judge.level.problem->queries(), "levels: expected the same queries in all");
        require(level.level.problem->rows().size() == judge.level.problem->rows().size(), "levels: expected the same rows in all");
        out.levels.push_back(level.level);
        owners.append(level.owners);
    }
    require(!out.levels.empty(), "levels: expected at least one");
    owners.append(judge.owners);
    out.judge = judge.level;
    out.flat = !judge.level.problem->groups().empty();
    out.hard = hard;
    return {std::make_shared<const Cascade>(std::move(out)), owners};
}

void require_ready(const Cascade& cascade, bool hard) {
    for (const Level& level : cascade.levels)
        require(level.problem->queries() == 0 || !level.problem->groups().empty() || (!hard && &level != &cascade.levels.front()),
                "levels: the first one must be ready to scan, or all if bounds are hard");
}

PyScan cascade_scan(const Target&, const py::sequence& levels, const PyLevel& judge, int64_t k, const py::object& allowed,
                    const py::object& floors, bool hard) {
    PyCascade made = cascade_of(levels, judge, hard);
    const int64_t queries = judge.level.problem->queries();
    require_ready(*made.cascade, hard);
    const Allowed map = allowed_of(allowed, *judge.level.problem);
    const double* from = floors.is_none() ? nullptr : per_query<double>(floors.cast<py::array>(), queries, "floors");
    return {std::make_unique<CascadeScan>(std::move(made.cascade), k, map, from), py::make_tuple(std::move(made.owners), allowed)};
}

PyScan level_scan(const Target&, const PyLevel& level, int64_t k, const py::object& allowed, const py::object& floors, int64_t share) {
    require(share > 0, "share: expected at least 1");
    const Problem& problem = *level.level.problem;
    require(problem.queries() == 0 || !problem.groups().empty(), "level: expected one that is ready to scan");
    std::vector<float> keys;
    if (!floors.is_none()) {
        const float* raw = per_query<float>(floors.cast<py::array>(), problem.queries(), "floors");
        for (int64_t q = 0; q < problem.queries(); ++q)
            keys.push_back(std::isnan(raw[q]) ? kLowest : problem.smallest_first() ? -raw[q] : raw[q]);
    }
    const Allowed map = allowed_of(allowed, problem);
    return {std::make_unique<TopK>(level.level.problem, k, map, std::move(keys), share), py::make_tuple(level.owners, allowed)};
}

// The keys of the first level from which on a list should hold what can matter, and not many more rows than `listed`: see `Backend.cascade_top_k`.
// What is scored for it goes to `scored`.
std::vector<float> guessed_floors(const std::shared_ptr<const Cascade>& cascade, int64_t k, int64_t listed, int64_t guess,
                                  const Allowed& allowed, std::vector<int64_t>& scored) {
    const Level& first = cascade->levels.front();
    const Problem& problem = *first.problem;
    const double part = static_cast<double>(k) / static_cast<double>(guess);
    const auto decides = static_cast<int64_t>(std::lround(part + 2.0 * std::sqrt(part) + 1.0)), taken = decides + 9;
    const int64_t rank = (listed + guess - 1) / guess, width = std::max(rank, taken);
    TopK best(first.problem, width, allowed, {}, guess);
    best.run(0, problem.rows().visits());
    std::vector<float> keys(static_cast<size_t>(problem.queries() * width)), floors;
    std::vector<int64_t> rows(keys.size());
    best.finish(keys.data(), rows.data());
    if (problem.smallest_first())
        for (float& key : keys) key = -key;
    CascadeScan seeds(cascade, decides, {}, nullptr);
    for (int64_t q = 0; q < problem.queries(); ++q) {
        const int64_t* found = rows.data() + q * width;
        const float* key = keys.data() + q * width;
        seeds.take(q, found, key, std::find(found, found + taken, int64_t{-1}) - found);
        floors.push_back(std::max(found[rank - 1] < 0 ? kLowest : key[rank - 1], first.least_key(q, seeds.least(q))));
    }
    scored = seeds.scored();
    return floors;
}

void require_counts(int64_t k, int64_t listed, int64_t share, int64_t guess) {
    require(k > 0, "k: expected at least one row");
    require(listed > 0, "listed: expected at least one row");
    require(share > 0 && guess >= 0, "share: expected at least 1, and a guess from 0 up");
}

// See `Backend.cascade_top_k`: scores and rows (queries, k), and which queries were scanned once more. Returns rows scored, (stages, queries).
// looked_for: whose best rows come first, the first level of the cascade if `keyed`.
std::vector<int64_t> top_k_at_once(const std::shared_ptr<const Cascade>& cascade, const std::shared_ptr<const Problem>& looked_for,
                                   bool keyed, int64_t k, int64_t listed, int64_t share, int64_t guess, const Allowed& allowed,
                                   float* scores, int64_t* rows, bool* again) {
    const Level& first = cascade->levels.front();
    const int64_t queries = looked_for->queries(), visits = looked_for->rows().visits();
    const int64_t width = std::min(listed, looked_for->rows().size());
    std::vector<int64_t> before;
    const std::vector<float> from_key = guess ? guessed_floors(cascade, k, width, guess, allowed, before) : std::vector<float>();
    TopK best(looked_for, width, allowed, from_key, share);
    best.run(0, visits);
    std::vector<float> raw(static_cast<size_t>(queries * width));
    std::vector<int64_t> found(raw.size());
    best.finish(raw.data(), found.data());
    CascadeScan seeds(cascade, k, {}, nullptr);
    std::vector<double> floors(static_cast<size_t>(queries));
    for (int64_t q = 0; q < queries; ++q) {
        const int64_t* from = found.data() + q * width;
        const int64_t count = std::find(from, from + width, int64_t{-1}) - from;
        float* keys = raw.data() + q * width;
        if (first.problem->smallest_first())
            for (int64_t i = 0; i < count; ++i) keys[i] = -keys[i];
        seeds.take(q, from, keyed ? keys : nullptr, count);
        const double least = seeds.least(q);
        const auto i = static_cast<size_t>(q);
        // Rows that are not listed have no better keys than this. Some that are may have worse ones than the floor: a scan is not that exact.
        const float floor = from_key.empty() ? kLowest : from_key[i];
        const float beyond = count == width ? std::max(keys[count - 1], floor) : floor;
        const bool listed_all = count < width && floor == kLowest;
        const bool all = share == 1 && (listed_all || first.estimate(q, beyond) < least);
        again[q] = !keyed || cascade->hard || !all;
        floors[i] = again[q] ? std::min(least, std::numeric_limits<double>::max()) : std::numeric_limits<double>::infinity();
    }
    CascadeScan scan(cascade, k, allowed, floors.data());
    if (std::any_of(again, again + queries, [](bool a) { return a; })) scan.run(0, visits);
    for (int64_t q = 0; q < queries; ++q) (again[q] ? scan : seeds).finish_query(q, scores + q * k, rows + q * k);
    std::vector<int64_t> scored = scan.scored();
    const std::vector<int64_t> listing = seeds.scored();
    for (size_t i = 0; i < scored.size(); ++i) scored[i] += listing[i] + (before.empty() ? 0 : before[i]);
    return scored;
}

py::tuple cascade_top_k(const Target&, const py::sequence& levels, const PyLevel& judge, int64_t k, int64_t listed, int64_t share,
                        int64_t guess, const py::object& allowed, bool hard, const py::object& seeder) {
    const PyCascade made = cascade_of(levels, judge, hard);
    require_ready(*made.cascade, hard);
    const Problem& problem = *judge.level.problem;
    const int64_t queries = problem.queries();
    require_counts(k, listed, share, guess);
    const Allowed map = allowed_of(allowed, problem);
    const bool keyed = seeder.is_none();
    const auto looked_for = keyed ? made.cascade->levels.front().problem : seeder.cast<const PyLevel&>().level.problem;
    require(looked_for->queries() == queries && looked_for->rows().size() == problem.rows().size(),
            "seeds: expected the same queries and rows");
    require(queries == 0 || !looked_for->groups().empty(), "seeds: expected a level that is ready to scan");
    py::array_t<float> scores({queries, k});
    py::array_t<int64_t> rows({queries, k}), counts({static_cast<int64_t>(made.cascade->levels.size()) + 1, queries});
    py::array_t<bool> more(queries);                // queries to which something that is not listed may matter
    float* s = scores.mutable_data();
    int64_t *r = rows.mutable_data(), *c = counts.mutable_data();
    bool* again = more.mutable_data();
    {
        const py::gil_scoped_release free;
        const std::vector<int64_t> scored = top_k_at_once(made.cascade, looked_for, keyed, k, listed, share, guess, map, s, r, again);
        std::copy(scored.begin(), scored.end(), c);
    }
    return py::make_tuple(scores, rows, counts, more);
}

py::tuple listed_top_k(const Target&, const PyListing& listing, const py::sequence& levels, const PyLevel& judge, int64_t k,
                       const py::object& allowed, int64_t first, int64_t last) {
    const PyCascade made = cascade_of(levels, judge, false);
    const Problem& problem = *judge.level.problem;
    require(k > 0, "k: expected at least one row");
    require(0 <= first && first <= last && last <= problem.queries(), "first: expected queries of the levels");
    require(begins_with(*made.cascade, *listing.listing), "levels: expected the codes of the listing, then its lists");
    const Allowed map = allowed_of(allowed, problem);
    py::array_t<float> scores({last - first, k});
    py::array_t<int64_t> rows({last - first, k});
    py::array_t<bool> left(last - first);
    float* s = scores.mutable_data();
    int64_t* r = rows.mutable_data();
    bool* more = left.mutable_data();
    CascadeScan scan(made.cascade, k, map, nullptr);
    {
        const py::gil_scoped_release free;
        for (int64_t from = first; from < last; from += kEntering) {
            const int64_t to = std::min(last, from + kEntering);
            std::vector<CascadeScan::Entrance> entrances;
            std::vector<int64_t> order(static_cast<size_t>(to - from));
            for (int64_t q = from; q < to; ++q) entrances.push_back(scan.enter(q));
            std::iota(order.begin(), order.end(), int64_t{0});
            const auto entrance = [&](int64_t i) -> const CascadeScan::Entrance& { return entrances[static_cast<size_t>(i)]; };
            // Queries whose best lists are the same, one after the other: these lists, and rows of theirs, are then in the cache.
            std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return entrance(a).best < entrance(b).best; });
            for (const int64_t i : order) {
                const int64_t q = from + i;
                more[q - first] = !scan.search(q, entrance(i), *listing.listing);
                scan.finish_query(q, s + (q - first) * k, r + (q - first) * k);
            }
        }
    }
    return py::make_tuple(scores, rows, counts_of(scan, first, last - first), left);
}

// --- queries made ready here ----------------------------------------------------------------------------------------------------

struct PySource {
    std::shared_ptr<const Source> source;
    py::object owners;
};

const float* matrix_of(const py::object& matrix, int64_t rows, int64_t columns, const char* name) {
    if (matrix.is_none()) return nullptr;
    const auto a = matrix.cast<py::array>();
    const float* p = contiguous<float>(a, 2, name);
    require(a.shape(0) == rows && a.shape(1) == columns, (std::string(name) + ": expected one row per dim that is coded").c_str());
    return p;
}

Metric product_of(const std::string& name) {
    const Metric metric = metric_of(name);
    require(metric != kL2, "metric: expected ip or cosine");
    return metric;
}

Coded coded_of(int64_t dim, int64_t dims, const py::object& directions, bool whole) {
    require(0 < dims && dims <= dim, "dims: expected 1 up to the dims of queries");
    return {dims, matrix_of(directions, dims, dim, "directions"), whole};
}

PySource full_source(const Target& self, const PyRows& rows, const std::string& metric) {
    return {std::make_shared<FullSource>(*self.table, rows.rows, metric_of(metric), width_of(rows)), rows.owners};
}

PySource integer_source(const Target& self, const PyRows& rows, const std::string& metric, int64_t dim, const py::object& directions,
                        bool whole, double intercept, double slope, const py::array& scales) {
    const Coded coded = coded_of(dim, width_of(rows), directions, whole);
    require(rows.rows->kind() == kInt8 && scales.size() == coded.dims, "scales: expected one per dim of int8 rows");
    return {std::make_shared<IntegerSource>(*self.table, rows.rows, product_of(metric), dim, coded, Line{intercept, slope},
                                            contiguous<float>(scales, 1, "scales")),
            py::make_tuple(rows.owners, directions, scales)};
}

PySource pq_source(const Target& self, const PyRows& rows, const std::string& metric, int64_t dim, int64_t dims,
                   const py::object& directions, double intercept, double slope, const py::array& codebooks, const py::object& rotation,
                   const py::object& lists) {
    std::optional<CodedLists> before;
    py::object of_lists = py::none();
    if (!lists.is_none()) {
        const auto [numbers, line] = lists.cast<std::pair<PyRows, std::pair<double, double>>>();
        require(numbers.centroids && numbers.centroids->subspaces == rows.subspaces && numbers.centroids->bits == rows.bits,
                "lists: expected those whose centroids are coded as rows are");
        require(numbers.rows->size() == rows.rows->size(), "lists: expected the same rows");
        before = CodedLists{numbers.rows, numbers.centroids->rows, {line.first, line.second}};
        of_lists = numbers.owners;
    }
    const Coded coded = coded_of(dim, dims, directions, false);
    const float* books = contiguous<float>(codebooks, 3, "codebooks");
    require(codebooks.shape(0) == rows.subspaces && codebooks.shape(1) == int64_t{1} << rows.bits, "codebooks: expected those of the rows");
    require(dims <= codebooks.shape(0) * codebooks.shape(2), "dims: wider than the codebooks");
    return {std::make_shared<PqSource>(*self.table, rows.rows, product_of(metric), dim, coded, Line{intercept, slope},
                                       Codebooks(books, codebooks.shape(0), codebooks.shape(1), codebooks.shape(2)), rows.subspaces,
                                       rows.bits, matrix_of(rotation, dims, dims, "rotation"), std::move(before)),
            py::make_tuple(rows.owners, directions, codebooks, rotation, of_lists)};
}

// None if some query's scores are too large for float32, or lists leave too much.
py::object source_top_k(const Target&, const py::sequence& sources, const py::array& queries, int64_t k, int64_t listed, int64_t share,
                        int64_t guess, const py::object& allowed, const py::object& listing) {
    std::vector<const Source*> all;
    for (const py::handle& item : sources) all.push_back(item.cast<const PySource&>().source.get());
    require(all.size() > 1, "sources: expected at least two");
    require_counts(k, listed, share, guess);
    const Rows& stored = *all.back()->rows();
    const float* q = queries_of<float>(queries, all.back()->dim(), "queries");
    for (const Source* source : all)
        require(source->dim() == all.back()->dim() && source->rows()->size() == stored.size(), "sources: expected the same rows in all");
    const int64_t count = queries.shape(0);
    py::array_t<float> scores({count, k});
    py::array_t<int64_t> ids({count, k});
    float* s = scores.mutable_data();
    int64_t* r = ids.mutable_data();
    const Allowed map = allowed_of(allowed, stored.size(), count);
    const Listing* by_lists = listing.is_none() ? nullptr : listing.cast<const PyListing&>().listing.get();
    bool too_large = false, fitting = true, given_up = false;
    {
        const py::gil_scoped_release free;
        Cascade cascade;
        for (size_t i = 0; i < all.size(); ++i) {
            const bool last = i + 1 == all.size();
            if ((too_large = !all[i]->add(q, count, !by_lists && (i == 0 || last), cascade.levels))) break;
        }
        if (!too_large) {
            cascade.judge = std::move(cascade.levels.back());
            cascade.levels.pop_back();
            cascade.flat = !by_lists, cascade.hard = false;
            const auto made = std::make_shared<const Cascade>(std::move(cascade));
            if (by_lists) {
                fitting = begins_with(*made, *by_lists);
                CascadeScan scan(made, k, map, nullptr);
                for (int64_t i = 0; fitting && i < count && !given_up; ++i) {
                    given_up = !scan.search(i, scan.enter(i), *by_lists);
                    scan.finish_query(i, s + i * k, r + i * k);
                }
            } else {
                const auto again = std::make_unique<bool[]>(static_cast<size_t>(count));
                top_k_at_once(made, made->levels.front().problem, true, k, listed, share, guess, map, s, r, again.get());
            }
            for (int64_t i = 0; fitting && !given_up && i < count * k; ++i)
                if (r[i] >= 0) r[i] = stored.id(r[i]);
        }
    }
    require(fitting, "sources: expected the codes of the listing, then its lists");
    if (too_large || given_up) return py::none();
    return py::make_tuple(scores, ids);
}

py::tuple cascade_rescore(const Target&, const py::sequence& levels, const PyLevel& judge, const py::array& candidates,
                          const py::object& raw, int64_t k, bool hard, int64_t first) {
    const PyCascade made = cascade_of(levels, judge, hard);
    const Problem& problem = *judge.level.problem;
    const int64_t queries = candidates.ndim() ? candidates.shape(0) : 0;
    require(k > 0, "k: expected at least one row");
    require(0 <= first && first <= problem.queries() - queries, "first: expected candidates for queries of the levels");
    const Lists lists = lists_of(candidates, queries, problem.rows().size());
    const float* known = nullptr;
    if (!raw.is_none()) {
        const auto a = raw.cast<py::array>();
        known = contiguous<float>(a, 2, "raw");
        require(a.shape(0) == candidates.shape(0) && a.shape(1) == lists.width, "raw: expected the shape of the candidates");
    }
    py::array_t<float> scores({queries, k});
    py::array_t<int64_t> rows({queries, k});
    py::array_t<double> least(queries);
    float* s = scores.mutable_data();
    int64_t* r = rows.mutable_data();
    double* l = least.mutable_data();
    CascadeScan scan(made.cascade, k, {}, nullptr);
    {
        const py::gil_scoped_release free;
        const bool negative = made.cascade->levels.front().problem->smallest_first();
        std::vector<int64_t> list;
        std::vector<float> keys;
        for (int64_t q = 0; q < queries; ++q) {
            const int64_t* from = lists.data + q * lists.width;
            list.clear(), keys.clear();
            if (known) {        // what a scan found: no row twice
                for (int64_t i = 0; i < lists.width; ++i)
                    if (from[i] >= 0)
                        list.push_back(from[i]), keys.push_back(negative ? -known[q * lists.width + i] : known[q * lists.width + i]);
            } else {
                list.assign(from, from + lists.width);
                std::sort(list.begin(), list.end());
                list.erase(std::unique(list.begin(), list.end()), list.end());
                list.erase(list.begin(), std::lower_bound(list.begin(), list.end(), int64_t{0}));
            }
            scan.take(first + q, list.data(), known ? keys.data() : nullptr, static_cast<int64_t>(list.size()));
            l[q] = scan.least(first + q);
            scan.finish_query(first + q, s + q * k, r + q * k);
        }
    }
    return py::make_tuple(scores, rows, least, counts_of(scan, first, queries));
}

}  // namespace

void register_cascades(py::module_& m, py::class_<Target>& target) {
    using py::arg;
    py::class_<PyLevel>(m, "Level", "A stage of a cascade with the queries of a batch.");
    py::class_<PyListing>(m, "Listing", "Codes in the order of inverted lists.");
    py::class_<PySource>(m, "Source", "A stage of a cascade for queries that come later.");
    target.def("dense_level", &dense_level, arg("rows"), arg("queries"), arg("metric"), arg("bound"), arg("scan") = false)
        .def("prefix_level", &prefix_level, arg("rows"), arg("queries"), arg("squares"), arg("largest"), arg("metric"), arg("bound"),
             arg("scan") = false)
        .def("integer_level", &integer_level, arg("rows"), arg("codes"), arg("factors"), arg("offsets"), arg("metric"), arg("bound"),
             arg("scan") = false)
        .def("hamming_level", &hamming_level, arg("rows"), arg("codes"), arg("bound"), arg("scan") = false)
        .def("pq_level", &pq_level, arg("rows"), arg("tables"), arg("largest"), arg("bound"), arg("scan") = false,
             arg("scaling") = py::none())
        .def("list_level", &list_level, arg("rows"), arg("tables"), arg("largest"), arg("bound"))
        .def("listing", &listing, arg("rows"), arg("codes"), arg("before") = py::none())
        .def("listed_top_k", &listed_top_k, arg("listing"), arg("levels"), arg("judge"), arg("k"), arg("allowed"), arg("first"),
             arg("last"))
        .def("full_source", &full_source, arg("rows"), arg("metric"))
        .def("integer_source", &integer_source, arg("rows"), arg("metric"), arg("dim"), arg("directions"), arg("whole"), arg("intercept"),
             arg("slope"), arg("scales"))
        .def("pq_source", &pq_source, arg("rows"), arg("metric"), arg("dim"), arg("dims"), arg("directions"), arg("intercept"),
             arg("slope"), arg("codebooks"), arg("rotation"), arg("lists") = py::none())
        .def("source_top_k", &source_top_k, arg("sources"), arg("queries"), arg("k"), arg("listed"), arg("share"), arg("guess"),
             arg("allowed"), arg("listing") = py::none())
        .def("level_scan", &level_scan, arg("level"), arg("k"), arg("allowed") = py::none(), arg("floors") = py::none(), arg("share") = 1)
        .def("cascade_scan", &cascade_scan, arg("levels"), arg("judge"), arg("k"), arg("allowed") = py::none(), arg("floors") = py::none(),
             arg("hard") = false)
        .def("cascade_top_k", &cascade_top_k, arg("levels"), arg("judge"), arg("k"), arg("listed"), arg("share"), arg("guess"),
             arg("allowed") = py::none(), arg("hard") = false, arg("seeds") = py::none())
        .def("cascade_rescore", &cascade_rescore, arg("levels"), arg("judge"), arg("candidates"), arg("raw"), arg("k"), arg("hard") = false,
             arg("first") = 0);
}

}  // namespace asx
