// What this machine can do at most: instructions per second from registers, bytes per second from memory. Compiled by limits.py on demand;
// no part of the package.
//
// Instructions. Twelve destinations are written in turns, so that no instruction waits for the one before, and all of them read the same two
// sources, so that nothing but the execution units is measured. The instructions stand in assembly: no compiler drops or fuses them,
// no flags are needed, and a loop whose instruction the CPU lacks is compiled but never run. Registers are all zero, so that
// nothing becomes infinite or denormal. The best of some short loops is the peak: an interrupted loop says nothing about it.
//
// Reading. Four independent sums of whole registers, as wide as the CPU has them. Random rows are read eight at a time, line by line in turns,
// which keeps more misses in flight than one row after the other does.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

#if defined(__x86_64__)

#define CLOBBERED                                                                                                                          \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
#define TWELVE(step)                                                                                                                       \
    step("0") step("1") step("2") step("3") step("4") step("5") step("6") step("7") step("8") step("9") step("10") step("11")

// clang-format off
#define FMA_512(n)      "vfmadd231ps %%zmm14, %%zmm15, %%zmm" n "\n"
#define FMA_256(n)      "vfmadd231ps %%ymm14, %%ymm15, %%ymm" n "\n"
#define BF16_512(n)     "vdpbf16ps %%zmm14, %%zmm15, %%zmm" n "\n"
#define INT8_512(n)     "vpdpbusd %%zmm14, %%zmm15, %%zmm" n "\n"
// Without VNNI products of 7-bit numbers are summed in 16 bits, and the sums added up.
#define INT8_256(n)     "vpmaddubsw %%ymm14, %%ymm15, %%ymm12\n vpaddw %%ymm12, %%ymm" n ", %%ymm" n "\n"
#define PERMUTE_512(n)  "vpermi2b %%zmm14, %%zmm15, %%zmm" n "\n"
#define SHUFFLE_512(n)  "vpshufb %%zmm14, %%zmm15, %%zmm" n "\n"
#define SHUFFLE_256(n)  "vpshufb %%ymm14, %%ymm15, %%ymm" n "\n"
#define POPCOUNT_512(n) "vpxorq %%zmm14, %%zmm15, %%zmm12\n vpopcntq %%zmm12, %%zmm12\n vpaddq %%zmm12, %%zmm" n ", %%zmm" n "\n"
// clang-format on

// Seconds of so many repetitions of twelve steps.
#define TIMED(step)                                                                                                                        \
    [](long repeats) {                                                                                                                     \
        const double start = now();                                                                                                        \
        asm volatile("vzeroall" ::: CLOBBERED);                                                                                            \
        for (long repeat = 0; repeat < repeats; ++repeat) asm volatile(TWELVE(step)::: CLOBBERED);                                         \
        asm volatile("vzeroupper");                                                                                                        \
        return now() - start;                                                                                                              \
    }

struct Instruction {
    const char* name;
    double work; // of one: multiplications and additions of dot products, bytes looked up, bytes whose bits are counted
    bool (*present)();
    double (*seconds)(long repeats);
};

const Instruction instructions[] = {
    {"fma zmm", 32, [] { return __builtin_cpu_supports("avx512f") != 0; }, TIMED(FMA_512)},
    {"fma ymm", 16, [] { return __builtin_cpu_supports("fma") != 0; }, TIMED(FMA_256)},
    {"vdpbf16ps", 64, [] { return __builtin_cpu_supports("avx512bf16") != 0; }, TIMED(BF16_512)},
    {"vpdpbusd", 128, [] { return __builtin_cpu_supports("avx512vnni") != 0; }, TIMED(INT8_512)},
    {"vpmaddubsw", 64, [] { return __builtin_cpu_supports("avx2") != 0; }, TIMED(INT8_256)},
    {"vpermi2b", 64, [] { return __builtin_cpu_supports("avx512vbmi") != 0; }, TIMED(PERMUTE_512)},
    {"vpshufb zmm", 64, [] { return __builtin_cpu_supports("avx512bw") != 0; }, TIMED(SHUFFLE_512)},
    {"vpshufb ymm", 32, [] { return __builtin_cpu_supports("avx2") != 0; }, TIMED(SHUFFLE_256)},
    {"vpopcntq", 64, [] { return __builtin_cpu_supports("avx512vpopcntdq") != 0; }, TIMED(POPCOUNT_512)},
};

// 256 bytes at a time; what is left over is not worth the code.
void read_512(const char* data, std::size_t bytes) {
    for (std::size_t at = 0; at + 256 <= bytes; at += 256)
        asm volatile(
            "vporq (%0), %%zmm0, %%zmm0\n vporq 64(%0), %%zmm1, %%zmm1\n vporq 128(%0), %%zmm2, %%zmm2\n vporq 192(%0), %%zmm3, %%zmm3" ::
                "r"(data + at)
            : "xmm0", "xmm1", "xmm2", "xmm3", "memory");
    asm volatile("vzeroupper");
}

void read_256(const char* data, std::size_t bytes) {
    for (std::size_t at = 0; at + 128 <= bytes; at += 128)
        asm volatile(
            "vorps (%0), %%ymm0, %%ymm0\n vorps 32(%0), %%ymm1, %%ymm1\n vorps 64(%0), %%ymm2, %%ymm2\n vorps 96(%0), %%ymm3, %%ymm3" ::"r"(
                data + at)
            : "xmm0", "xmm1", "xmm2", "xmm3", "memory");
    asm volatile("vzeroupper");
}

void read_line(const char* line) {
    asm volatile("por (%0), %%xmm0\n por 16(%0), %%xmm1\n por 32(%0), %%xmm2\n por 48(%0), %%xmm3" ::"r"(line)
                 : "xmm0", "xmm1", "xmm2", "xmm3", "memory");
}

void read_all(const char* data, std::size_t bytes) {
    static const bool wide = __builtin_cpu_supports("avx512f"), middle = __builtin_cpu_supports("avx");
    if (wide) return read_512(data, bytes);
    if (middle) return read_256(data, bytes);
    for (std::size_t at = 0; at + 64 <= bytes; at += 64) read_line(data + at);
}

#else

void read_line(const char* line) {
    std::uint64_t words[8];
    std::memcpy(words, line, 64);
    asm volatile("" ::"r"(words[0] | words[1] | words[2] | words[3] | words[4] | words[5] | words[6] | words[7]));
}

void read_all(const char* data, std::size_t bytes) {
    for (std::size_t at = 0; at + 64 <= bytes; at += 64) read_line(data + at);
}

#endif

} // namespace

extern "C" {

// Work per second of the instruction of that name over so many repetitions of twelve; 0 if this CPU lacks it.
double instruction_rate(const char* name, long repeats) {
#if defined(__x86_64__)
    for (const Instruction& instruction : instructions)
        if (!std::strcmp(instruction.name, name) && instruction.present())
            return instruction.work * 12 * static_cast<double>(repeats) / instruction.seconds(repeats);
#endif
    (void)name, (void)repeats;
    return 0;
}

// Bytes per second of reading all of the data in order, `times` times.
double read_rate(const char* data, std::size_t bytes, long times) {
    const double start = now();
    for (long time = 0; time < times; ++time) read_all(data, bytes);
    return bytes * static_cast<double>(times) / (now() - start);
}

// Bytes per second of reading these rows, whose width is a multiple of 64 bytes. A number of rows that is no multiple of 8 is rounded down.
double random_rate(const char* data, std::size_t width, const std::int64_t* rows, std::size_t count) {
    const double start = now();
    for (std::size_t first = 0; first + 8 <= count; first += 8)
        for (std::size_t at = 0; at < width; at += 64)
            for (std::size_t row = first; row < first + 8; ++row) read_line(data + rows[row] * static_cast<std::int64_t>(width) + at);
    return static_cast<double>(count / 8 * 8 * width) / (now() - start);
}
}
