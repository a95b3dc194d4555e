// Working memory of a thread, kept between calls: page faults of fresh memory cost more than the
// arithmetic on it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llama_fast {

// At least `bytes` of 64-byte aligned memory, uninitialised, valid until this thread asks again or
// its outermost ScratchInUse ends. Large requests use huge pages if the system has them.
// Throws std::runtime_error if memory runs out.
void* thread_scratch(size_t bytes);

// Marks that this thread may use its scratch while the object lives: around operators and the
// bodies of parallel loops.
class ScratchInUse {
 public:
  ScratchInUse();
  ~ScratchInUse();
  ScratchInUse(const ScratchInUse&) = delete;
};

// Frees the scratch of every thread that is not using it; returns how many bytes that was.
size_t free_idle_scratch();

// The size of n elements of `each` bytes; throws std::runtime_error if it overflows.
size_t bytes_of(int64_t n, size_t each);

// Memory for all threads of one call: this thread's scratch, or, if that would be too large to
// keep, memory that is freed at the end.
class Workspace {
 public:
  explicit Workspace(size_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
  bool owned_;
};

// Divides an allocation into aligned arrays. Used twice: first without a base, to measure the size.
class Carver {
 public:
  explicit Carver(void* base = nullptr) : base_(static_cast<char*>(base)) {}

  // n elements of T; null while only measuring.
  template <class T>
  T* take(int64_t n) {
    T* p = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (bytes_of(n, sizeof(T)) + 63) / 64 * 64;
    return p;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace llama_fast
