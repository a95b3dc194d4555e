// LF_BOX turns a function into an operator: TORCH_BOX with clear error messages.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/library.h>

#include <new>
#include <stdexcept>
#include <string>

#include "constants.h"

namespace llama_fast {

// The message of torch's last error in this thread, which its C functions do not return. Empty with
// torch before 2.13: the library is built for 2.10 and looks the function up at run time.
inline std::string torch_error_message() {
  static const auto what = reinterpret_cast<const char* (*)()>(
      dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));
  const char* const reason = what == nullptr ? nullptr : what();
  return reason == nullptr ? "" : reason;
}

using Boxed = void(StableIValue*, uint64_t, uint64_t);

// Calls `function`. An error of torch, which its C functions report as "API call failed at ...",
// gets torch's own message, and running out of memory gets a separate message.
template <Boxed* function>
void with_clear_errors(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  try {
    function(stack, inputs, outputs);
  } catch (const std::bad_alloc&) {
    throw std::runtime_error("llama_fast: " LF_NOT_ENOUGH_MEMORY " (std::bad_alloc)");
  } catch (const std::length_error& error) {  // of a vector
    throw std::runtime_error(std::string("llama_fast: " LF_NOT_ENOUGH_MEMORY ": ") + error.what());
  } catch (const std::runtime_error& error) {
    const bool of_torch =
        std::string(error.what()).find(" API call failed at ") != std::string::npos;
    const std::string reason = of_torch ? torch_error_message() : "";
    if (reason.empty()) throw;
    throw std::runtime_error("llama_fast: " + reason);
  }
}

}  // namespace llama_fast

#define LF_BOX(function) (&llama_fast::with_clear_errors<&TORCH_BOX(function)>)
