#include "ops/source.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/dense.h"
#include "ops/integer.h"
#include "ops/listing.h"

namespace asx {

namespace {

constexpr double kFloatMax = std::numeric_limits<float>::max();

}  // namespace

bool all_finite(const float* values, int64_t count) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits;
        std::memcpy(&bits, values + i, 4);
        bad |= static_cast<uint32_t>((bits & 0x7f800000u) == 0x7f800000u);
    }
    return bad == 0;
}

std::vector<float> Source::unit(const float* queries, int64_t count, int64_t dims) const {
    std::vector<float> out(static_cast<size_t>(count * dims));
    if (metric_ == kCosine)
        unit_queries(table_, queries, count, dims, out.data());
    else
        std::copy_n(queries, out.size(), out.begin());
    return out;
}

std::vector<double> Source::units(const float* queries, int64_t count) const {
    if (metric_ != kIp) return std::vector<double>(static_cast<size_t>(count), 1.0);
    Chunk all;
    all.pieces.push_back({reinterpret_cast<const uint8_t*>(queries), 4 * dim_, dim_});
    all.rows = count;
    std::vector<float> norms(static_cast<size_t>(count));
    row_norms(table_, kFloat32, all, false, norms.data());
    std::vector<double> out;
    for (const float norm : norms) out.push_back(norm > 0.0f ? static_cast<double>(norm) : 1.0);
    return out;
}

bool FullSource::add(const float* queries, int64_t count, bool scan, std::vector<Level>& levels) const {
    Level out;
    out.problem = std::make_shared<DenseProblem>(table_, rows_, queries, count, metric_, scan);
    out.offset.assign(static_cast<size_t>(count), 0.0);
    out.factor.assign(static_cast<size_t>(count), 1.0);
    levels.push_back(std::move(out));
    return true;
}

std::vector<float> CodedSource::mapped(const std::vector<float>& vectors, int64_t count, const float* matrix, int64_t rows,
                                       int64_t dims) const {
    std::vector<float> out(static_cast<size_t>(count * rows));
    map_queries(table_, vectors.data(), count, matrix, rows, dims, out.data());
    if (all_finite(out.data(), static_cast<int64_t>(out.size()))) return out;
    for (float& x : out) x = std::isnan(x) ? 0.0f : std::clamp(x, -std::numeric_limits<float>::max(), std::numeric_limits<float>::max());
    return out;
}

std::vector<float> CodedSource::coordinates(const float* queries, int64_t count) const {
    std::vector<float> out;
    if (coded_.directions) {
        out = mapped(unit(queries, count, dim_), count, coded_.directions, dims(), dim_);
        return unit(out.data(), count, dims());
    }
    if (coded_.whole && dims() < dim_) {
        const std::vector<float> all = unit(queries, count, dim_);
        for (int64_t q = 0; q < count; ++q) out.insert(out.end(), all.begin() + q * dim_, all.begin() + q * dim_ + dims());
        return out;
    }
    for (int64_t q = 0; q < count; ++q) out.insert(out.end(), queries + q * dim_, queries + q * dim_ + dims());
    return unit(out.data(), count, dims());
}

bool IntegerSource::add(const float* queries, int64_t count, bool scan, std::vector<Level>& levels) const {
    const std::vector<float> vectors = coordinates(queries, count);
    std::vector<int8_t> codes(vectors.size());
    std::vector<double> steps(static_cast<size_t>(count));
    integer_queries(vectors.data(), count, dims(), scales_, codes.data(), steps.data());
    std::vector<float> factors;
    for (const double step : steps) {
        if (!(std::abs(step) <= kFloatMax)) return false;
        factors.push_back(static_cast<float>(step));
    }
    const std::vector<float> offsets(factors.size(), 0.0f);
    Level out;
    for (const double unit : units(queries, count)) {
        out.offset.push_back(unit * line_.intercept);
        out.factor.push_back(line_.slope * unit / unit);
    }
    out.problem = std::make_shared<IntegerProblem>(table_, rows_, codes.data(), count, factors.data(), offsets.data(), IntegerMetric::ip,
                                                   false, nullptr, scan);
    levels.push_back(std::move(out));
    return true;
}

bool PqSource::add(const float* queries, int64_t count, bool scan, std::vector<Level>& levels) const {
    struct Own {
        std::vector<float> tables;
        std::optional<PqProblem> rows, centroids;
    };
    std::vector<float> vectors = coordinates(queries, count);
    if (rotation_) vectors = mapped(vectors, count, rotation_, dims(), dims());
    const int64_t entries = int64_t{1} << bits_;
    const auto own = std::make_shared<Own>();
    own->tables.resize(static_cast<size_t>(count * subspaces_ * entries));
    if (!codebooks_.tables(table_, vectors.data(), count, dims(), false, own->tables.data())) return false;
    std::vector<double> base(static_cast<size_t>(count), 0.0), step(base.size(), 1.0);
    if (bits_ == 4) make_whole(table_, own->tables.data(), count, subspaces_, entries, base.data(), step.data());
    const std::vector<double> unit = units(queries, count);
    const auto level_of = [&](std::shared_ptr<const Problem> problem, const Line& line) {
        Level out;
        out.problem = std::move(problem);
        for (size_t q = 0; q < unit.size(); ++q) {
            out.offset.push_back(unit[q] * line.intercept - -base[q]);
            out.factor.push_back(line.slope * unit[q] / (unit[q] / step[q]));
        }
        return out;
    };
    own->rows.emplace(table_, rows_, subspaces_, bits_, own->tables.data(), count, true, ScoreScaling{}, scan);
    levels.push_back(level_of(std::shared_ptr<const Problem>(own, &*own->rows), line_));
    if (!lists_) return true;
    own->centroids.emplace(table_, lists_->centroids, subspaces_, bits_, own->tables.data(), count, true, ScoreScaling{}, false);
    const std::shared_ptr<const PqProblem> centroids(own, &*own->centroids);
    levels.push_back(level_of(std::make_shared<ListProblem>(lists_->rows, centroids), lists_->line));
    return true;
}

}  // namespace asx
