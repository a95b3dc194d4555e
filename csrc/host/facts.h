// What the host module was built with, what the processor can do, and constants of the kernels.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace llama_fast::host {

// Compiler, C++ standard and architecture that this module was compiled with.
std::map<std::string, std::string> build_info();

// Instruction-set extensions that our kernels use or could use: name -> present. The operating
// system's support counts: a processor feature whose registers it does not save is absent.
std::map<std::string, bool> cpu_features();

// The numbers of csrc/constants.h, the values of DType, and the memory that linear cross-entropy
// uses, by name.
std::map<std::string, int64_t> constants();

}  // namespace llama_fast::host
