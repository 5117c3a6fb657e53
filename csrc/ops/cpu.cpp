#include "ops/cpu.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

namespace asx {

#if defined(__x86_64__) || defined(__i386__)
namespace {

struct Registers {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
    Registers r;
    __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
    return r;
}

// Which register files the operating system saves on a task switch (XCR0).
uint64_t saved_registers() {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
}

uint64_t detect() {
    const auto bit = [](unsigned word, int position, uint64_t feature) { return word >> position & 1u ? feature : 0; };
    const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = seven.a >= 1 ? cpuid(7, 1) : Registers{};
    const Registers extended = cpuid(0x80000001u, 0);
    uint64_t found =
        bit(one.c, 20, kSse42) | bit(one.c, 23, kPopcnt) | bit(seven.b, 3, kBmi) | bit(seven.b, 8, kBmi2) | bit(extended.c, 5, kLzcnt);
    constexpr uint64_t ymm = 0x6, zmm = 0xe6;       // XMM and YMM state; and the three parts of the AVX-512 state
    const bool os_can_tell = one.c >> 27 & 1u;
    const uint64_t saved = os_can_tell ? saved_registers() : 0;
    if ((saved & ymm) == ymm) found |= bit(seven.b, 5, kAvx2) | bit(one.c, 12, kFma) | bit(one.c, 29, kF16c);
    if ((saved & zmm) == zmm)
        found |= bit(seven.b, 16, kAvx512f) | bit(seven.b, 30, kAvx512bw) | bit(seven.b, 17, kAvx512dq) | bit(seven.b, 31, kAvx512vl) |
                 bit(seven.b, 28, kAvx512cd) | bit(seven.c, 11, kAvx512vnni) | bit(seven.c, 1, kAvx512vbmi) |
                 bit(seven.c, 14, kAvx512vpopcntdq) | bit(seven_one.a, 5, kAvx512bf16) | bit(seven.c, 12, kAvx512bitalg);
    return found;
}

}  // namespace

uint64_t cpu_features() {
    static const uint64_t found = detect();
    return found;
}

// Zen 5 does not pick up streams read in 64-byte loads: fetching 8 KB ahead took 64-byte rows from 4.6 to 2.0 ns and 3 KiB rows from 29 to
// 36 GB/s there. On Zen 4 the same prefetch is harmful: 3 KiB rows fell from 26 to 16 GB/s, 32-byte codes from 26 to 15. On Zen 3, with AVX2, what
// else a scan does keeps loads from running far enough ahead: one to four queries 1.0 to 1.4 times as fast with 2 to 8 KB (docs/performance.md).
int64_t prefetch_distance() {
    static const int64_t distance = [] {
        const Registers vendor = cpuid(0, 0), version = cpuid(1, 0);
        const bool amd = vendor.b == 0x68747541u;       // "Auth", of AuthenticAMD
        const unsigned family = (version.a >> 8 & 15u) + (version.a >> 20 & 255u);
        const bool zen3 = family == 0x19 && !(cpu_features() & kAvx512f), zen5 = family == 0x1a;
        return !amd ? 0 : zen5 ? 8192 : zen3 ? 4096 : 0;
    }();
    return distance;
}
#else
uint64_t cpu_features() { return 0; }
int64_t prefetch_distance() { return 0; }
#endif

std::string feature_names(uint64_t bits) {
    static constexpr const char* names[] = {
        "sse4.2",     "popcnt",          "avx2",       "fma",         "f16c",     "bmi",      "bmi2",
        "lzcnt",      "avx512f",         "avx512bw",   "avx512dq",    "avx512vl", "avx512cd", "avx512vnni",
        "avx512vbmi", "avx512vpopcntdq", "avx512bf16", "avx512bitalg"};
    std::string out;
    for (int i = 0; i < static_cast<int>(sizeof(names) / sizeof(names[0])); ++i)
        if (bits >> i & 1u) out += (out.empty() ? "" : ", ") + std::string(names[i]);
    return out;
}

}  // namespace asx
