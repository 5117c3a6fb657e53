// What this CPU, and the operating system it runs, can do.
#pragma once

#include <cstdint>
#include <string>

#include "targets/cpu_features.h"

namespace asx {

// Bits of CpuFeature that this machine has and whose registers the operating system saves.
uint64_t cpu_features();

// How far ahead, in bytes, scans of few queries should fetch by themselves; 0: the hardware does it better.
int64_t prefetch_distance();

// Names of the features in `bits`, separated by ", ".
std::string feature_names(uint64_t bits);

}  // namespace asx
