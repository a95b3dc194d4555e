// Loops over the elements of a row, a vector at a time.
#pragma once

#include <type_traits>

#include "cpu/rows.h"
#include "cpu/stream.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int64_t kItemElements = 1 << 15;  // elements of a work item

// Whether outputs of this size, which do not fit the caches, are written by streaming stores.
inline bool worth_streaming(int64_t bytes) { return kCanStream && bytes >= int64_t{16} << 20; }

// Whether each row of T begins where streaming stores may begin.
template <class T>
bool rows_are_aligned(const RowShape& shape, const RowTensor& rows) {
  constexpr int64_t bytes = kLanes<acc_t<T>> * static_cast<int64_t>(sizeof(T));
  bool aligned = reinterpret_cast<uintptr_t>(rows.data) % bytes == 0;
  for (int d = 0; d < shape.dims; ++d)
    aligned &= rows.strides[d] * static_cast<int64_t>(sizeof(T)) % bytes == 0;
  return aligned;
}

// Elements [at, at + count) of a row in a loop over it. kWhole: they fill a vector.
template <bool kWhole>
struct Piece {
  int64_t at, count;

  // Lanes past the last element hold zero.
  template <class T>
  LF_INLINE vec<acc_t<T>> load(const T* row) const {
    if constexpr (kWhole) return load_acc(row + at);
    return load_acc_n(row + at, count, acc_t<T>(0));
  }
  template <class T>
  LF_INLINE void store(T* row, vec<acc_t<T>> v) const {
    if constexpr (kWhole) {
      store_acc(row + at, v);
    } else {
      store_acc_n(row + at, v, count);
    }
  }
  // With kStream a streaming store, if the vector is whole; it must be aligned then.
  template <bool kStream, class T>
  LF_INLINE void put(T* row, vec<acc_t<T>> v) const {
    if constexpr (kWhole && kStream) {
      stream_acc(row + at, v);
    } else {
      store(row, v);
    }
  }
};

// f(piece, chain) for the pieces of a row of n elements that are computed in A, kChains vectors at
// a time. With one sum for each `chain`, additions do not wait for each other.
template <class A, int kChains, class F>
LF_INLINE void for_pieces(int64_t n, F&& f) {
  constexpr int64_t lanes = kLanes<A>;
  int64_t at = 0;
  for (; at + kChains * lanes <= n; at += kChains * lanes) {
#pragma GCC unroll 8
    for (int k = 0; k < kChains; ++k) f(Piece<true>{at + k * lanes, lanes}, k);
  }
  for (; at + lanes <= n; at += lanes) f(Piece<true>{at, lanes}, 0);
  if (at < n) f(Piece<false>{at, n - at}, 0);
}

// v rounded as by a store to T.
template <class T>
LF_INLINE vec<acc_t<T>> rounded(vec<acc_t<T>> v) {
  if constexpr (sizeof(T) == 2) {
    return widen(T{}, narrow(T{}, v));
  } else {
    return v;
  }
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
