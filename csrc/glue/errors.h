// Errors that keep their class on the way to Python. In older releases of torch pybind11 raises
// std::out_of_range as an IndexError, std::invalid_argument as a ValueError and everything else as
// a RuntimeError. torch 2.15 does that itself and raises std::invalid_argument as a RuntimeError,
// too, which llama_fast/ops/backends/library.py tells apart by its message.
#pragma once

#include <sstream>
#include <stdexcept>

namespace llama_fast {

template <class Error, class... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void throw_error(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(message.str());
}

// Raises IndexError unless `good`; its message is the concatenated parts.
template <class... Parts>
inline void check_index(bool good, const Parts&... parts) {
  if (!good) throw_error<std::out_of_range>(parts...);
}

// Raises ValueError unless `good`; its message is the concatenated parts.
template <class... Parts>
inline void check_value(bool good, const Parts&... parts) {
  if (!good) throw_error<std::invalid_argument>(parts...);
}

}  // namespace llama_fast
