// Error bounds and margins as kernels take them: float32, never less than they are.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace asx {

inline float round_up(double x) {
    const auto y = static_cast<float>(x);
    return static_cast<double>(y) < x ? std::nextafter(y, std::numeric_limits<float>::infinity()) : y;
}

// Rounding errors of sums over `dims`, relative to |q||x|: the scan's and the canonical score's, twice over (see docs/architecture.md).
inline float relative_slack(int64_t dims) { return static_cast<float>(2.0 * (static_cast<double>(dims) + 8.0) * 0x1p-24 * 1.01); }

// A margin as kernels take it: slightly more, for they round.
inline float kernel_margin(double margin) { return round_up(margin * (1.0 + 0x1p-20)); }

}  // namespace asx
