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
extern const KernelTable table;
}
#endif

const std::vector<const KernelTable*>& targets() {
    static const std::vector<const KernelTable*> list = {
#if defined(__x86_64__) || defined(_M_X64)
        &avx512_bf16::table, &avx512::table, &avx2::table,
#endif
        &baseline::table};
    return list;
}

}  // namespace asx
