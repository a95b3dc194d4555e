// What happens when memory runs out, and locks that a forked process can take.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>

namespace llama_fast {

// "not enough memory: tried to allocate ...", which llama_fast/_out_of_memory.py recognises.
// `cause`: what the system or torch said; may be empty.
[[noreturn]] void throw_out_of_memory(size_t bytes, const std::string& cause = "");

// Gives back all memory that lies idle: outputs of dead tensors, and the scratch of threads that
// run no kernel. Returns how many bytes that was.
size_t give_up_idle_memory();

// What f() returns; a second time where it throws and there was idle memory to give up.
template <class F>
auto with_idle_memory(F&& f) {
  try {
    return f();
  } catch (const std::runtime_error&) {
    if (give_up_idle_memory() == 0) throw;
  }
  return f();
}

// Locked across every fork(): in the child nobody holds it, and what it guards is whole.
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
