#include "ops/assigner.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace asx {

namespace {

// Rounds before which points are put into blocks anew. Codewords of the first one move so far that gaps would not last.
constexpr int64_t kArranged[] = {2, 8};

size_t as_size(int64_t n) { return static_cast<size_t>(n); }

// Orders codewords such that every group of consecutive ones is of neighbours: halves by the dim of the largest variance, and so on.
void split(const float* codebook, int64_t dims, int64_t group, int32_t* begin, int32_t* end) {
    if (end - begin <= group) return;
    int64_t widest = 0;
    double most = -1.0;
    for (int64_t s = 0; s < dims; ++s) {
        double sum = 0.0, squares = 0.0;
        for (const int32_t* j = begin; j < end; ++j) {
            const auto x = static_cast<double>(codebook[*j * dims + s]);
            sum += x;
            squares += x * x;
        }
        const double variance = squares - sum * sum / static_cast<double>(end - begin);
        if (variance > most) most = variance, widest = s;
    }
    int32_t* middle = begin + ((end - begin) / 2 + group - 1) / group * group;
    std::nth_element(begin, middle, end, [&](int32_t a, int32_t b) {
        const float x = codebook[a * dims + widest], y = codebook[b * dims + widest];
        return x < y || (x == y && a < b);
    });
    split(codebook, dims, group, begin, middle);
    split(codebook, dims, group, middle, end);
}

}  // namespace

Assigner::Assigner(const KernelTable& table, const float* points, int64_t count, int64_t dims, int64_t codewords)
    : table_(table), points_(points), count_(count), dims_(dims), codewords_(codewords),
      blocks_((count + table.pq_revisited.rows - 1) / table.pq_revisited.rows),
      groups_(((codewords + table.pq_revisited.group - 1) / table.pq_revisited.group + 15) / 16 * 16), center_(as_size(dims)),
      prepared_(as_size(prepared_floats(codewords, dims)), std::numeric_limits<float>::infinity()), codebook_(as_size(codewords * dims)),
      centered_(as_size(blocks_ * table.pq_revisited.rows * dims)), distances_(as_size(blocks_ * table.pq_revisited.rows)),
      gaps_(as_size(blocks_ * groups_)), moves_(as_size(groups_)), order_(as_size(codewords)),
      numbers_(as_size(blocks_ * table.pq_revisited.rows)) {
    std::vector<double> sums(as_size(dims), 0.0);
    for (int64_t i = 0; i < count; ++i)
        for (int64_t s = 0; s < dims; ++s) sums[as_size(s)] += static_cast<double>(points[i * dims + s]);
    for (int64_t s = 0; s < dims && count; ++s) center_[as_size(s)] = static_cast<float>(sums[as_size(s)] / static_cast<double>(count));
    for (int64_t i = 0; i < count; ++i) {
        double square = 0.0;
        for (int64_t s = 0; s < dims; ++s) {
            const double x = static_cast<double>(points[i * dims + s]) - static_cast<double>(center_[as_size(s)]);
            square += x * x;
        }
        longest_ = std::max(longest_, static_cast<float>(std::min(std::sqrt(square), 1e38)));
    }
    std::iota(order_.begin(), order_.end(), 0);
    arrange(nullptr);
}

void Assigner::move(const float* codebook, const int32_t* nearest) {
    const bool anew = std::find(std::begin(kArranged), std::end(kArranged), rounds_) != std::end(kArranged);
    if (anew) {
        split(codebook, dims_, table_.pq_revisited.group, order_.data(), order_.data() + codewords_);
        arrange(nearest);
    }
    std::vector<float> ordered(as_size(codewords_ * dims_));
    for (int64_t j = 0; j < codewords_; ++j) std::copy_n(codebook + order_[as_size(j)] * dims_, dims_, ordered.data() + j * dims_);
    book_ = prepare_codebook(ordered.data(), codewords_, dims_, center_.data(), prepared_.data());
    // Canonical sums are made in the order of the numbers, of which the first counts.
    transpose(codebook, codewords_, dims_, book_.padded, prepared_.data());
    float* tile = prepared_.data() + dims_ * book_.padded + dims_;
    for (int64_t j = 0; j < codewords_; ++j)
        std::memcpy(tile + j / kPqTile * (dims_ + 2) * kPqTile + kPqTile + j % kPqTile, &order_[as_size(j)], 4);

    reach_ = std::max(reach_, book_.radius);
    std::fill(moves_.begin(), moves_.end(), 0.0f);
    for (int64_t j = 0; j < codewords_; ++j) {
        double square = 0.0;
        for (int64_t s = 0; s < dims_; ++s) {
            const double x = static_cast<double>(ordered[as_size(j * dims_ + s)]) -
                             static_cast<double>(codebook_[as_size(order_[as_size(j)] * dims_ + s)]);
            square += x * x;
        }
        float& most = moves_[as_size(j / table_.pq_revisited.group)];
        // Rounding of gaps, which are no larger than distances between points and codewords, now and whenever they were taken.
        const double slack = 0x1p-19 * (static_cast<double>(longest_) + static_cast<double>(reach_));
        const double moved = std::sqrt(square) * (1.0 + 1e-6) + slack;
        most = std::max(most, moved < 1e38 ? static_cast<float>(moved) : 1e38f);
    }
    std::copy_n(codebook, codewords_ * dims_, codebook_.begin());
    ++rounds_;
}

void Assigner::assign(int64_t first, int64_t last, int32_t* nearest) {
    std::vector<float> workspace(as_size(groups_ * table_.pq_revisited.rows));
    const PqBlocks blocks = {points_, dims_, numbers_.data(), centered_.data(), distances_.data(), gaps_.data(), moves_.data()};
    table_.pq_revisited.assign(&book_, &blocks, first, last, workspace.data(), nearest);
}

// Points in the order of their codewords' places, of which nothing is known then.
void Assigner::arrange(const int32_t* nearest) {
    const int64_t rows = table_.pq_revisited.rows;
    std::vector<int32_t> place(as_size(codewords_));
    for (int64_t j = 0; j < codewords_; ++j) place[as_size(order_[as_size(j)])] = static_cast<int32_t>(j);
    std::vector<int64_t> starts(as_size(codewords_ + 1), 0);
    const auto place_of = [&](int64_t i) { return nearest ? place[as_size(nearest[i])] : 0; };
    for (int64_t i = 0; i < count_; ++i) ++starts[as_size(place_of(i) + 1)];
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    for (int64_t i = 0; i < count_; ++i) numbers_[as_size(starts[as_size(place_of(i))]++)] = static_cast<int32_t>(i);
    for (int64_t i = count_; i < blocks_ * rows; ++i) numbers_[as_size(i)] = numbers_[as_size(count_ - 1)];
    for (int64_t b = 0; b < blocks_; ++b)
        for (int64_t s = 0; s < dims_; ++s) {
            float* to = centered_.data() + (b * dims_ + s) * rows;
            const int32_t* numbers = numbers_.data() + b * rows;
            for (int64_t r = 0; r < rows; ++r) to[r] = center_[as_size(s)] - points_[numbers[r] * dims_ + s];
        }
    std::fill(distances_.begin(), distances_.end(), 0.0f);
    std::fill(gaps_.begin(), gaps_.end(), -std::numeric_limits<float>::infinity());
}

}  // namespace asx
