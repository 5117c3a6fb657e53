// See targets/table.inc.
#define ASX_TARGET avx2
#include "simd/avx2.h"
#include "targets/table.inc"
