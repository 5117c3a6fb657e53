// All targets that were compiled in, best first.
#pragma once

#include <vector>

#include "kernels/table.h"

namespace asx {

const std::vector<const KernelTable*>& targets();

}  // namespace asx
