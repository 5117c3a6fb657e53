// Bits for the CPU features that targets may require, named after the compiler's macros.
#pragma once

#include <cstdint>

namespace asx {

enum CpuFeature : uint64_t {
    kSse42 = 1u << 0,
    kPopcnt = 1u << 1,
    kAvx2 = 1u << 2,
    kFma = 1u << 3,
    kF16c = 1u << 4,
    kBmi = 1u << 5,
    kBmi2 = 1u << 6,
    kLzcnt = 1u << 7,
    kAvx512f = 1u << 8,
    kAvx512bw = 1u << 9,
    kAvx512dq = 1u << 10,
    kAvx512vl = 1u << 11,
    kAvx512cd = 1u << 12,
    kAvx512vnni = 1u << 13,
    kAvx512vbmi = 1u << 14,
    kAvx512vpopcntdq = 1u << 15,
    kAvx512bf16 = 1u << 16,
    kAvx512bitalg = 1u << 17,
};

}  // namespace asx
