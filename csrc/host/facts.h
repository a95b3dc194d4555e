// What the host module was built with, and what the processor can do.
#pragma once

#include <map>
#include <string>

namespace llama_fast::host {

// Compiler, C++ standard and architecture that this module was compiled with.
std::map<std::string, std::string> build_info();

// Instruction-set extensions that our kernels use or could use: name -> present. The operating
// system's support counts: a processor feature whose registers it does not save is absent.
std::map<std::string, bool> cpu_features();

}  // namespace llama_fast::host
