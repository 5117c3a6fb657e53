#include "ops/source.h"

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "bindings/cascade.h"
#include "bindings/plain.h"
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

// A cascade for queries that come later.
struct PySearcher {
    std::vector<std::shared_ptr<const Source>> sources;
    std::shared_ptr<const Listing> listing; // or null
    int64_t share, spare, guess;
    py::object owners;

    int64_t dim() const { return sources.back()->dim(); }
    const Rows& rows() const { return *sources.back()->rows(); }
};

PySearcher searcher(const Target&, const py::sequence& sources, int64_t share, int64_t spare, int64_t guess, const py::object& listing) {
    PySearcher made = {{}, nullptr, share, spare, guess, py::make_tuple(sources, listing)};
    for (const py::handle& item : sources) made.sources.push_back(item.cast<const PySource&>().source);
    require(made.sources.size() > 1, "sources: expected at least two");
    require(spare >= 0, "spare: expected none or more");
    require_share(share, guess);
    for (const auto& source : made.sources)
        require(source->dim() == made.dim() && source->rows()->size() == made.rows().size(), "sources: expected the same rows in all");
    if (!listing.is_none()) made.listing = listing.cast<const PyListing&>().listing;
    return made;
}

// Ids and scores of the `width` best rows of each query. False: some scores are too large for float32, or lists leave too much.
bool found_at_once(const PySearcher& self, const float* queries, int64_t count, int64_t width, const Allowed& allowed, float* scores,
                   int64_t* ids) {
    Cascade cascade;
    for (size_t i = 0; i < self.sources.size(); ++i) {
        const bool last = i + 1 == self.sources.size();
        if (!self.sources[i]->add(queries, count, !self.listing && (i == 0 || last), cascade.levels)) return false;
    }
    cascade.judge = std::move(cascade.levels.back());
    cascade.levels.pop_back();
    cascade.flat = !self.listing, cascade.hard = false;
    const auto made = std::make_shared<const Cascade>(std::move(cascade));
    if (self.listing) {
        if (!begins_with(*made, *self.listing)) throw std::invalid_argument("sources: expected the codes of the listing, then its lists");
        CascadeScan scan(made, width, allowed, nullptr);
        for (int64_t q = 0; q < count; ++q) {
            if (!scan.search(q, scan.enter(q), *self.listing)) return false;
            scan.finish_query(q, scores + q * width, ids + q * width);
        }
    } else {
        const auto again = std::make_unique<bool[]>(static_cast<size_t>(count));
        top_k_at_once(made, made->levels.front().problem, true, width, width + self.spare, self.share, self.guess, allowed, scores, ids,
                      again.get());
    }
    for (int64_t i = 0; i < count * width; ++i)
        if (ids[i] >= 0) ids[i] = self.rows().id(ids[i]);
    return true;
}

// See `Searcher.search`.
py::object search_at_once(const PySearcher& self, py::handle queries, py::handle k, int64_t least, int64_t live, const py::object& allowed,
                          int64_t most) {
    const int64_t wanted = plain_count(k);
    const PlainQueries q = plain_queries<float>(queries, self.dim(), most);
    if (wanted == 0 || q.count == 0 || live < 1) return py::none();
    const Allowed map = allowed_of(allowed, self.rows().size(), q.count);
    const int64_t kept = std::min(wanted, live), width = std::min(std::max(wanted, least), live);
    py::array_t<int64_t> ids(q.shape(kept));
    py::array_t<float> scores(q.shape(kept));
    int64_t* to = ids.mutable_data();
    float* scores_to = scores.mutable_data();
    bool found = false;
    {
        const py::gil_scoped_release free;
        if (kept == width) {
            found = found_at_once(self, q.data, q.count, width, map, scores_to, to);
        } else {
            std::vector<float> all_scores(static_cast<size_t>(q.count * width));
            std::vector<int64_t> all(all_scores.size());
            found = found_at_once(self, q.data, q.count, width, map, all_scores.data(), all.data());
            for (int64_t i = 0; i < q.count; ++i) {
                std::copy_n(all.data() + i * width, kept, to + i * kept);
                std::copy_n(all_scores.data() + i * width, kept, scores_to + i * kept);
            }
        }
    }
    return found ? py::object(py::make_tuple(ids, scores)) : py::none();
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
        .def("searcher", &searcher, arg("sources"), arg("share"), arg("spare"), arg("guess"), arg("listing") = py::none());
    py::class_<PySearcher>(m, "Searcher", "A cascade for queries that come later.")
        .def("search", &search_at_once, arg("queries"), arg("k"), arg("least"), arg("live"), arg("allowed"), arg("most"));
}

}  // namespace asx
