#include "glue/memory.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include <cstdio>

#include "constants.h"
#include "cpu/scratch.h"
#include "glue/output_cache.h"

namespace llama_fast {

void throw_out_of_memory(size_t bytes, const std::string& cause) {
  const char* const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  double size = static_cast<double>(bytes);
  int unit = 0;
  for (; size >= 1024 && unit < 4; ++unit) size /= 1024;
  char text[128];
  std::snprintf(text, sizeof text, LF_NOT_ENOUGH_MEMORY ": tried to allocate %.*f %s (%zu bytes)",
                unit == 0 ? 0 : 2, size, units[unit], bytes);
  throw std::runtime_error(std::string("llama_fast: ") + text + (cause.empty() ? "" : ": ") +
                           cause);
}

size_t free_idle_memory() {
  return static_cast<size_t>(empty_output_cache()) + free_idle_scratch();
}

ForkSafeMutex::ForkSafeMutex(Handler lock_it, Handler unlock_it) {
#if defined(__unix__) || defined(__APPLE__)
  pthread_atfork(lock_it, unlock_it, unlock_it);
#else
  (void)lock_it, (void)unlock_it;
#endif
}

}  // namespace llama_fast
