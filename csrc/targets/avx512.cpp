// See targets/table.inc.
#define ASX_TARGET avx512
#include "simd/avx512.h"
#include "targets/table.inc"
