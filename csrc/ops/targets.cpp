#include "ops/targets.h"

namespace asx {

namespace baseline {
extern const KernelTable table;
}
#if defined(__x86_64__) || defined(_M_X64)
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
namespace avx512_bf16 {
extern const DenseBFloat16 table;
}

namespace {

KernelTable with(const DenseBFloat16& replaced, KernelTable table) {
    table.c.target = replaced.target;
    table.requires_cpu |= replaced.requires_cpu;
    table.dense[kBFloat16] = replaced.dense;
    return table;
}

}  // namespace
#endif

const std::vector<const KernelTable*>& targets() {
#if defined(__x86_64__) || defined(_M_X64)
    static const KernelTable wide_bf16 = with(avx512_bf16::table, avx512::table);
#endif
    static const std::vector<const KernelTable*> list = {
#if defined(__x86_64__) || defined(_M_X64)
        &wide_bf16, &avx512::table, &avx2::table,
#endif
        &baseline::table};
    return list;
}

}  // namespace asx
