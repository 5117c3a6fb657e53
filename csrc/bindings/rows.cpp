#include "bindings/rows.h"

#include "ops/codes.h"

namespace asx {

namespace {

const int64_t* ids_pointer(const py::object& ids) { return ids.is_none() ? nullptr : contiguous<int64_t>(ids.cast<py::array>(), 1, "ids"); }

// One float per row, or null for None.
const float* per_row(const py::object& values, int64_t rows, const char* name) {
    if (values.is_none()) return nullptr;
    const auto a = values.cast<py::array>();
    if (a.size() != rows) throw py::value_error(std::string(name) + ": expected one per row");
    return contiguous<float>(a, 1, name);
}

PyRows finished(Rows rows, const py::sequence& chunks, const py::object& ids) {
    require(ids.is_none() || ids.cast<py::array>().size() == rows.size(), "ids: expected one per row");
    PyRows out;
    out.rows = std::make_shared<const Rows>(std::move(rows));
    out.owners = py::make_tuple(chunks, ids);
    return out;
}

}  // namespace

Piece piece_of(const py::array& a, py::ssize_t item_bytes) {
    require(a.ndim() == 2 && a.itemsize() == item_bytes, "pieces: expected matrices of the kind's element type");
    require(a.size() == 0 || a.shape(1) <= 1 || a.strides(1) == item_bytes, "pieces: expected a contiguous last axis");
    return {static_cast<const uint8_t*>(a.data()), a.strides(0), a.shape(1)};
}

Kind kind_of(const std::string& name) {
    if (name == "float32") return kFloat32;
    if (name == "float16") return kFloat16;
    if (name == "bfloat16") return kBFloat16;
    require(name == "int8", "kind: expected float32, float16, bfloat16 or int8");
    return kInt8;
}

Metric metric_of(const std::string& name) {
    if (name == "ip") return kIp;
    if (name == "cosine") return kCosine;
    require(name == "l2", "metric: expected ip, cosine or l2");
    return kL2;
}

PyRows dense_rows(const std::string& kind_name, const py::sequence& chunks, const py::object& ids) {
    const Kind kind = kind_of(kind_name);
    const py::ssize_t item_bytes = kind == kFloat32 ? 4 : kind == kInt8 ? 1 : 2;
    std::vector<Chunk> out;
    std::vector<int64_t> widths;
    for (const py::handle& item : chunks) {
        Chunk chunk;
        std::vector<int64_t> own;
        for (const py::handle& piece : item.attr("pieces")) {
            const auto a = py::reinterpret_borrow<py::array>(piece);
            chunk.pieces.push_back(piece_of(a, item_bytes));
            own.push_back(a.shape(1));
            require(chunk.pieces.size() == 1 || chunk.rows == a.shape(0), "pieces: expected the same number of rows in all");
            chunk.rows = a.shape(0);
        }
        require(!own.empty() && own.size() <= kMaxPieces, "pieces: expected 1 to 8 of them");
        require(widths.empty() || widths == own, "chunks: expected the same widths in all");
        widths = own;
        chunk.norms = per_row(item.attr("norms"), chunk.rows, "norms");
        chunk.weights = per_row(item.attr("weights"), chunk.rows, "weights");
        out.push_back(std::move(chunk));
    }
    require(!widths.empty(), "chunks: expected at least one, if need be with no rows");
    return finished(Rows(kind, widths, std::move(out), ids_pointer(ids)), chunks, ids);
}

PyRows bit_rows(const py::sequence& chunks, int64_t bits, const py::object& ids) {
    const int64_t width = (bits + 7) / 8;
    require(bits >= 1, "bits: expected at least 1");
    std::vector<Chunk> out;
    for (const py::handle& item : chunks) {
        const auto a = py::reinterpret_borrow<py::array>(item);
        Chunk chunk;
        chunk.pieces.push_back(piece_of(a, 1));
        require(a.shape(1) >= width, "codes: expected rows of at least `bits` bits");
        chunk.pieces[0].width = width;
        chunk.rows = a.shape(0);
        out.push_back(std::move(chunk));
    }
    Rows rows(kInt8, {width}, std::move(out), ids_pointer(ids));
    rows.last_word = last_word_mask(bits);
    return finished(std::move(rows), chunks, ids);
}

namespace {

int64_t code_bytes_of(int64_t subspaces, int bits) {
    require(bits == 4 || bits == 8, "bits: expected 4 or 8");
    require(subspaces >= 1 && subspaces <= 65535, "subspaces: expected 1 to 65,535");
    return bits == 8 ? subspaces : (subspaces + 1) / 2;
}

}  // namespace

Chunk pq_chunk(const py::array& packed, int64_t rows, int64_t subspaces, int bits) {
    const int64_t code_bytes = code_bytes_of(subspaces, bits);
    const uint8_t* base = contiguous<uint8_t>(packed, 3, "packed codes");
    require(packed.shape(1) == code_bytes && packed.shape(2) == kPqBlock && packed.shape(0) >= (rows + kPqBlock - 1) / kPqBlock,
            "packed codes: expected shape (blocks of 64 rows, code bytes, 64)");
    Chunk chunk;
    chunk.rows = rows;
    chunk.pieces.push_back({base, code_bytes * kPqBlock, subspaces});
    return chunk;
}

PyRows pq_rows(const py::sequence& chunks, int64_t subspaces, int bits, const py::object& ids) {
    code_bytes_of(subspaces, bits); // looks at them, where there are no chunks
    std::vector<Chunk> out;
    for (const py::handle& item : chunks) {
        Chunk chunk = pq_chunk(item.attr("packed").cast<py::array>(), item.attr("rows").cast<int64_t>(), subspaces, bits);
        chunk.weights = per_row(item.attr("scales"), chunk.rows, "scales");
        chunk.norms = per_row(item.attr("terms"), chunk.rows, "terms");
        out.push_back(std::move(chunk));
    }
    PyRows result = finished(Rows(kInt8, {subspaces}, std::move(out), ids_pointer(ids)), chunks, ids);
    result.subspaces = subspaces;
    result.bits = bits;
    return result;
}

PyRows list_rows(const py::sequence& chunks, const PyRows& centroids, const py::object& ids) {
    const int64_t lists = centroids.rows->size();
    require(centroids.subspaces > 0, "centroids: expected codes of product quantization");
    require(lists >= 1 && lists <= 65536, "centroids: expected 1 to 65,536");
    for (const Chunk& chunk : centroids.rows->chunks()) require(!chunk.weights, "centroids: expected rows without scales");
    std::vector<Chunk> out;
    for (const py::handle& item : chunks) {
        const auto a = py::reinterpret_borrow<py::array>(item);
        const uint16_t* numbers = contiguous<uint16_t>(a, 1, "lists");
        Chunk chunk;
        chunk.rows = a.size();
        chunk.pieces.push_back({reinterpret_cast<const uint8_t*>(numbers), 2, 1});
        for (int64_t r = 0; r < chunk.rows; ++r) require(numbers[r] < lists, "lists: expected numbers below how many there are");
        out.push_back(std::move(chunk));
    }
    PyRows result = finished(Rows(kInt8, {1}, std::move(out), ids_pointer(ids)), chunks, ids);
    result.owners = py::make_tuple(result.owners, centroids.owners);
    result.centroids = std::make_shared<const PyRows>(centroids);
    return result;
}

Allowed allowed_of(const py::object& allowed, int64_t rows, int64_t queries) {
    Allowed map;
    if (!allowed.is_none()) {
        const auto a = allowed.cast<py::array>();
        const int axes = a.ndim() == 2 ? 2 : 1;
        map.bytes = reinterpret_cast<const uint8_t*>(contiguous<bool>(a, axes, "allowed"));
        require(a.shape(axes - 1) == rows && (axes == 1 || a.shape(0) == queries), "allowed: expected shape (N,) or (Q, N)");
        map.stride = axes == 2 ? a.shape(1) : 0;
    }
    return map;
}

PyScan PyScan::make(std::shared_ptr<const Problem> problem, int64_t k, const py::object& allowed, py::object owners) {
    require(k >= 0, "k: expected a number of rows");
    const Allowed map = allowed_of(allowed, *problem);
    return {std::make_unique<TopK>(std::move(problem), k, map), py::make_tuple(std::move(owners), allowed)};
}

py::array_t<int64_t> counts_of(const Scan& scan, int64_t first, int64_t count) {
    const std::vector<int64_t> counts = scan.scored();
    const int64_t queries = scan.queries(), stages = queries ? static_cast<int64_t>(counts.size()) / queries : 0;
    py::array_t<int64_t> out({stages, count});
    for (int64_t stage = 0; stage < stages; ++stage)
        std::copy_n(counts.data() + stage * queries + first, count, out.mutable_data() + stage * count);
    return out;
}

void register_rows(py::module_& m) {
    py::class_<PyRows>(m, "Rows", "Rows prepared for native kernels; keeps the arrays alive.")
        .def("__len__", [](const PyRows& self) { return self.rows->size(); })
        .def_property_readonly("visits", [](const PyRows& self) { return self.rows->visits(); });

    py::class_<PyScan>(m, "Scan", "A top-k in progress.")
        .def_property_readonly("bad_row", [](const PyScan& self) { return self.scan->bad_row(); })
        .def(
            "run",
            [](PyScan& self, int64_t first, int64_t last) {
                const py::gil_scoped_release free;
                self.scan->run(first, last);
            },
            py::arg("first"), py::arg("last"))
        .def("fork", [](const PyScan& self) { return PyScan{self.scan->fork(), self.owners}; })
        .def(
            "merge",
            [](PyScan& self, const PyScan& other) {
                const py::gil_scoped_release free;
                self.scan->merge(*other.scan);
            },
            py::arg("other"))
        .def_property_readonly("scored", [](const PyScan& self) { return counts_of(*self.scan, 0, self.scan->queries()); })
        .def("finish", [](PyScan& self) {
            py::array_t<float> scores({self.scan->queries(), self.scan->k()});
            py::array_t<int64_t> rows({self.scan->queries(), self.scan->k()});
            float* s = scores.mutable_data();
            int64_t* r = rows.mutable_data();
            {
                const py::gil_scoped_release free;
                self.scan->finish(s, r);
            }
            return py::make_tuple(scores, rows);
        });
}

}  // namespace asx
