// avx512 but for what instructions for bfloat16 make faster: all else would be the same code once more. See DenseBFloat16.
#define ASX_TARGET avx512_bf16
#include "simd/avx512.h"
#include "targets/dense.inc"

namespace asx::avx512_bf16 {

extern const DenseBFloat16 table;
constexpr DenseBFloat16 table = {ASX_NAME(ASX_TARGET), required_features, bfloat16_family<Simd>()};

} // namespace asx::avx512_bf16
