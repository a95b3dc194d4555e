// Errors and retries when memory runs out, and locks that work across fork().
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>

namespace llama_fast {

// "not enough memory: tried to allocate ...", which llama_fast/_out_of_memory.py recognises.
// `cause`: the message of the system or torch; may be empty.
[[noreturn]] void throw_out_of_memory(size_t bytes, const std::string& cause = "");

// Frees idle memory: outputs of freed tensors, and the scratch of threads that run no kernel.
// Returns the number of bytes.
size_t free_idle_memory();

// Calls f(); if it throws and there is idle memory to free, frees that and calls f() again.
template <class F>
auto with_idle_memory(F&& f) {
  try {
    return f();
  } catch (const std::runtime_error&) {
    if (free_idle_memory() == 0) throw;
  }
  return f();
}

// Locked during every fork(): in the child it is unlocked, and the data it guards is consistent.
class ForkSafeMutex {
 public:
  using Handler = void (*)();
  // The handlers lock and unlock this mutex, which is never destroyed.
  ForkSafeMutex(Handler lock_it, Handler unlock_it);
  ForkSafeMutex(const ForkSafeMutex&) = delete;
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }
  bool try_lock() { return mutex_.try_lock(); }

 private:
  std::mutex mutex_;
};

}  // namespace llama_fast
