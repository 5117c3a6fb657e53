// See targets/table.inc.
#define ASX_TARGET baseline
#include "simd/scalar.h"
#include "targets/table.inc"
