// The functions of ptx.h in C++: kernels run on the CPU, to test them without a GPU.
//
// The threads of a block are fibers of one thread of the operating system. Each runs until it has
// to wait for others, so that a missing barrier gives a wrong result for some order of the threads;
// LLAMA_FAST_EMULATION_ORDER=reverse and =shuffle change the order. All blocks of a cluster run
// concurrently; clusters run one after the other. Shared memory is filled with NaN when a block
// begins, and so is the target of an asynchronous copy until it is waited for. A collective that
// not all threads of a warp, block or cluster reach is an error that names the kernel.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "cpu/types.h"
#include "cuda/launch.h"

#define LF_KERNEL(max_threads) static void
#define LF_DEVICE inline

namespace llama_fast {
namespace cuda {

struct alignas(16) Chunk {
  uint32_t word[4];
};

namespace emulation {

// Threads that wait for each other.
struct Barrier {
  int expected = 0, arrived = 0;
  uint64_t generation = 0;
  const char* what = "";  // the collective that the first thread to arrive called
};

struct Warp {
  Barrier barrier;
  alignas(16) unsigned char slots[2][32][64];  // values of the lanes; see exchange()
};

struct Cluster;

struct Block {
  Cluster* cluster;
  int rank;  // in the cluster
  int64_t index[3];
  Barrier barrier;
  char* shared;
  std::vector<Warp> warps;
};

struct Cluster {
  const Launch* launch;
  Barrier barrier;
  std::vector<Block> blocks;
};

struct Copy {
  void* to;
  const void* from;  // null: zeros
};

struct Thread {
  Block* block;
  Warp* warp;
  int index;
  unsigned exchanges;
  const Barrier* waits_at;
  uint64_t generation;
  std::vector<std::vector<Copy>> copies;  // committed groups, then the group that is still open
};

extern Thread* current;

void wait_at(Barrier& barrier, const char* what);
[[noreturn]] void fail(const char* what);
void run(const Launch& launch, const std::function<void()>& kernel);

// The values of all lanes, which every lane of the warp may read until the next exchange.
template <class T>
const unsigned char (*exchange(const T& value, const char* what))[64] {
  static_assert(sizeof(T) <= 64, "slots are small");
  Thread& me = *current;
  // Two alternating sets of slots are enough: no lane is two exchanges ahead of another.
  auto& slots = me.warp->slots[me.exchanges++ % 2];
  std::memcpy(slots[me.index % 32], &value, sizeof(T));
  wait_at(me.warp->barrier, what);
  return slots;
}

template <class T>
T read(const unsigned char* slot) {
  T value;
  std::memcpy(&value, slot, sizeof(T));
  return value;
}

}  // namespace emulation

// --- indices ---------------------------------------------------------------------------------

inline int thread() { return emulation::current->index; }
inline int threads() { return emulation::current->block->cluster->launch->threads; }
inline int64_t block_x() { return emulation::current->block->index[0]; }
inline int64_t block_y() { return emulation::current->block->index[1]; }
inline int64_t block_z() { return emulation::current->block->index[2]; }
inline int64_t blocks_x() { return emulation::current->block->cluster->launch->grid[0]; }
inline int64_t blocks_y() { return emulation::current->block->cluster->launch->grid[1]; }
inline int cluster_rank() { return emulation::current->block->rank; }
inline int cluster_size() { return emulation::current->block->cluster->launch->cluster; }

// --- collectives -----------------------------------------------------------------------------

inline void sync_block() { emulation::wait_at(emulation::current->block->barrier, "sync_block"); }
inline void sync_warp() { emulation::wait_at(emulation::current->warp->barrier, "sync_warp"); }
inline void sync_cluster() {
  emulation::wait_at(emulation::current->block->cluster->barrier, "sync_cluster");
}

inline char* shared_memory() { return emulation::current->block->shared; }

template <class T>
T* distributed(T* p, int rank) {
  emulation::Block& block = *emulation::current->block;
  const auto offset = reinterpret_cast<const char*>(p) - block.shared;
  return reinterpret_cast<T*>(block.cluster->blocks[static_cast<size_t>(rank)].shared + offset);
}

template <class T>
T shuffle(T value, int lane) {
  return emulation::read<T>(emulation::exchange(value, "shuffle")[lane % 32]);
}

template <class T>
T shuffle_xor(T value, int mask) {
  const int lane = (thread() ^ mask) % 32;
  return emulation::read<T>(emulation::exchange(value, "shuffle_xor")[lane]);
}

inline uint32_t ballot(bool value) {
  const auto* slots = emulation::exchange(value, "ballot");
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(emulation::read<bool>(slots[i])) << i;
  return bits;
}

// --- memory ----------------------------------------------------------------------------------

namespace emulation {
inline void check_aligned(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) fail("an access of 16 bytes at another address");
}
}  // namespace emulation

inline Chunk load_chunk(const void* p) {
  emulation::check_aligned(p);
  return *static_cast<const Chunk*>(p);
}
inline Chunk load_chunk_once(const void* p) { return load_chunk(p); }
inline void store_chunk(void* p, Chunk chunk) {
  emulation::check_aligned(p);
  *static_cast<Chunk*>(p) = chunk;
}
inline void store_chunk_once(void* p, Chunk chunk) { store_chunk(p, chunk); }

// The copy happens as late as possible: when it is waited for.
inline void copy_async(void* shared, const void* global, bool valid = true) {
  emulation::check_aligned(shared);
  if (valid) emulation::check_aligned(global);
  auto& copies = emulation::current->copies;
  if (copies.empty()) copies.emplace_back();
  std::memset(shared, 0xff, 16);
  copies.back().push_back({shared, valid ? global : nullptr});
}
inline void copy_async_commit() {
  auto& copies = emulation::current->copies;
  if (copies.empty()) copies.emplace_back();
  copies.emplace_back();
}
template <int kPending>
void copy_async_wait() {
  auto& copies = emulation::current->copies;
  const auto groups = static_cast<int>(copies.size()) - 1;
  for (int i = 0; i < groups - kPending; ++i) {
    for (const emulation::Copy& c : copies.front()) {
      if (c.from) {
        std::memcpy(c.to, c.from, 16);
      } else {
        std::memset(c.to, 0, 16);
      }
    }
    copies.erase(copies.begin());
  }
}

// --- numbers ---------------------------------------------------------------------------------

inline float widen(float v) { return v; }
inline float widen(bf16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  return emulation::read<float>(reinterpret_cast<const unsigned char*>(&bits));
}
inline float widen(f16 v) {
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000) << 16, rest = v.bits & 0x7fff;
  uint32_t bits = (rest << 13) + (112u << 23);
  if (rest >= 0x7c00) bits += 112u << 23;  // inf, NaN
  float value;
  std::memcpy(&value, &bits, 4);
  if (rest < 0x400) value = static_cast<float>(rest) * 0x1p-24f;  // subnormal, zero
  std::memcpy(&bits, &value, 4);
  bits |= sign;
  std::memcpy(&value, &bits, 4);
  return value;
}

template <class T>
T narrow(float v);
template <>
inline float narrow<float>(float v) {
  return v;
}
template <>
inline bf16 narrow<bf16>(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  if (v != v) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline f16 narrow<f16>(float v) {
  const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  const float size = std::fabs(v);
  if (v != v) return {0x7fff};
  if (size == 0.0f) return {sign};
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  // Rounds to the last place, ties to even, by adding and subtracting a large number.
  int exponent = 0;
  std::frexp(size, &exponent);
  const float step = std::ldexp(1.0f, (exponent < -13 ? -13 : exponent) - 11);
  const auto units = static_cast<uint32_t>(std::nearbyint(size / step));
  const int field = exponent < -13 ? 0 : exponent + 13;  // 1024 units or more carry into it
  return {static_cast<uint16_t>(sign | (units + (static_cast<uint32_t>(field) << 10)))};
}

// Two numbers in a register, the first in its lower half.
template <class T>
uint32_t pack(float low, float high) {
  return narrow<T>(low).bits | static_cast<uint32_t>(narrow<T>(high).bits) << 16;
}

inline float exp2_fast(float x) { return std::exp2(x); }
inline float multiply(float a, float b) {
  float product = a * b;
  asm volatile("" : "+m"(product));  // keeps the compiler from contracting the product
  return product;
}
inline float divide_fast(float a, float b) { return a / b; }

// --- matrices --------------------------------------------------------------------------------

// d += a b: 16x16 times 16x8, the fragments laid out as in the PTX manual (mma.m16n8k16).
template <class T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Fragments {
    T a[8], b[4];
  } mine;
  std::memcpy(mine.a, a, sizeof mine.a);
  std::memcpy(mine.b, b, sizeof mine.b);
  const auto* slots = emulation::exchange(mine, "multiply_add");
  const int lane = thread() % 32;
  double sums[4] = {};
  for (int k = 0; k < 16; ++k) {
    // Columns 2t, 2t + 1, 2t + 8, 2t + 9 of a (rows of b) lie in the lane t of a group of four.
    const int holder = k % 8 / 2, half = k / 8, odd = k % 2;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4, lower = i / 2;  // rows g and g + 8
      const int column = lane % 4 * 2 + i % 2;
      const auto left = emulation::read<Fragments>(slots[row * 4 + holder]);
      const auto right = emulation::read<Fragments>(slots[column * 4 + holder]);
      sums[i] += static_cast<double>(widen(left.a[half * 4 + lower * 2 + odd])) *
                 widen(right.b[half * 2 + odd]);
    }
  }
  for (int i = 0; i < 4; ++i) d[i] = static_cast<float>(d[i] + sums[i]);
}

namespace emulation {
template <int kMatrices>
void load_matrices(uint32_t (&to)[kMatrices], const void* row, bool transposed) {
  check_aligned(row);
  const auto* slots = exchange(row, "load_matrices");
  const int lane = thread() % 32;
  for (int m = 0; m < kMatrices; ++m) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const int at = lane % 4 * 2 + i, r = transposed ? at : lane / 4;
      const auto* from = read<const uint16_t*>(slots[m * 8 + r]);
      pair[i] = from[transposed ? lane / 4 : at];
    }
    to[m] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
}
}  // namespace emulation

// Loads 8x8 matrices of 16-bit numbers from shared memory (ldmatrix). Lane i passes the address of
// row i % 8, 16 bytes, of matrix i / 8. It receives the elements 2 (i % 4) and 2 (i % 4) + 1 of row
// i / 4 of each matrix, or of column i / 4 with `_transposed`.
template <int kMatrices>
void load_matrices(uint32_t (&to)[kMatrices], const void* row) {
  emulation::load_matrices(to, row, false);
}
template <int kMatrices>
void load_matrices_transposed(uint32_t (&to)[kMatrices], const void* row) {
  emulation::load_matrices(to, row, true);
}

// --- host ------------------------------------------------------------------------------------

template <class... P, class... A>
void launch(const Queue&, const Launch& how, void (*kernel)(P...), A... arguments) {
  emulation::run(how, [&] { kernel(arguments...); });
}

}  // namespace cuda
}  // namespace llama_fast
