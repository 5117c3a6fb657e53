// See targets/table.inc.
#define ASX_TARGET avx512_bf16
#include "simd/avx512.h"
#include "targets/table.inc"
