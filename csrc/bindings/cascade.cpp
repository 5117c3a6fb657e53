#include "bindings/cascade.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/at_once.h"
#include "ops/cascade.h"
#include "ops/codes.h"
#include "ops/listing.h"

namespace asx {

namespace {

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
        search_lists(scan, *listing.listing, first, last, s, r, more);
    }
    return py::make_tuple(scores, rows, counts_of(scan, first, last - first), left);
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
        .def("level_scan", &level_scan, arg("level"), arg("k"), arg("allowed") = py::none(), arg("floors") = py::none(), arg("share") = 1)
        .def("cascade_scan", &cascade_scan, arg("levels"), arg("judge"), arg("k"), arg("allowed") = py::none(), arg("floors") = py::none(),
             arg("hard") = false)
        .def("cascade_top_k", &cascade_top_k, arg("levels"), arg("judge"), arg("k"), arg("listed"), arg("share"), arg("guess"),
             arg("allowed") = py::none(), arg("hard") = false, arg("seeds") = py::none())
        .def("cascade_rescore", &cascade_rescore, arg("levels"), arg("judge"), arg("candidates"), arg("raw"), arg("k"), arg("hard") = false,
             arg("first") = 0);
}

}  // namespace asx
