#include "ops/source.h"

#include <optional>

#include "bindings/cascade.h"
#include "ops/at_once.h"

namespace asx {

namespace {

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

}  // namespace

void register_sources(py::module_& m, py::class_<Target>& target) {
    using py::arg;
    py::class_<PySource>(m, "Source", "A stage of a cascade for queries that come later.");
    target.def("full_source", &full_source, arg("rows"), arg("metric"))
        .def("integer_source", &integer_source, arg("rows"), arg("metric"), arg("dim"), arg("directions"), arg("whole"), arg("intercept"),
             arg("slope"), arg("scales"))
        .def("pq_source", &pq_source, arg("rows"), arg("metric"), arg("dim"), arg("dims"), arg("directions"), arg("intercept"),
             arg("slope"), arg("codebooks"), arg("rotation"), arg("lists") = py::none())
        .def("source_top_k", &source_top_k, arg("sources"), arg("queries"), arg("k"), arg("listed"), arg("share"), arg("guess"),
             arg("allowed"), arg("listing") = py::none());
}

}  // namespace asx
