// Large matrix products, blocked for the caches, on operands packed in panels.
//
// C[m, n] (+)= sum_k A[m, k] * B[k, n] for the modes of gemm.h. Both operands lie in panels: of a
// panel of width w the w numbers of step 0 come first, then those of step 1, and so on. A has
// panels of kPanelRows rows; B has panels of 3 registers of columns, at the end 2 or 1. The panel
// that starts at row or column i of an operand with kk steps begins at element i * kk.
//
// A panel is filled from a row-major matrix in one of two ways: panel_across turns each row of the
// source into a column of the panel (a transpose), panel_along turns it into a step.
//
// After Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication": a block of
// A stays in the second-level cache, a run of one panel of B in the first.
#pragma once

#include <type_traits>
#include <utility>

#include "cpu/amx.h"
#include "cpu/gemm.h"
#include "cpu/transpose.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int64_t kPanelRows = 16;
constexpr int kPanelVecs = 3;
#if defined(__AVX512F__)
constexpr int kBlockRows = 8;  // 24 accumulators of 32 registers
#else
constexpr int kBlockRows = 4;  // 12 of 16
#endif
// Steps that are summed in registers before they are added to C, and steps of A that are gone
// through while its block stays in the cache.
constexpr int64_t kSteps = 256, kDepth = 512;

LF_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// f(first column, width) for the panels of a B with n columns (a multiple of the lanes).
template <class M, class F>
LF_INLINE void for_panels(int64_t n, F&& f) {
  constexpr int64_t lanes = kLanes<typename M::acc>;
  for (int64_t n0 = 0; n0 < n;) {
    const int64_t left = n - n0;
    const int64_t width = left < kPanelVecs * lanes ? left : kPanelVecs * lanes;
    f(n0, width);
    n0 += width;
  }
}

template <class M, int Vecs>
void multiply_panel(int64_t m, int64_t kk, int64_t depth, const typename M::elem* a,
                    const typename M::elem* b, typename M::acc* c, int64_t c_row, bool accumulate) {
  constexpr int64_t width = Vecs * kLanes<typename M::acc>;
  for (int64_t k = 0; k < depth; k += kSteps) {
    const int64_t run = depth - k < kSteps ? depth - k : kSteps;
    for (int64_t i = 0; i < m; i += kBlockRows) {
      for (int64_t r = 0; r < kBlockRows; ++r)
        for (int v = 0; v < Vecs; ++v)
          __builtin_prefetch(c + (i + r) * c_row + v * kLanes<typename M::acc>, 1);
      tile<M, kBlockRows, Vecs>(run, a + i / kPanelRows * kPanelRows * kk + i % kPanelRows, 1,
                                kPanelRows, b, width, c + i * c_row, c_row, accumulate);
    }
    a += run * kPanelRows;
    b += run * width;
    accumulate = true;
  }
}

// Elements of `scratch` that `multiply` needs, for which a stack may be too small.
template <class M>
constexpr int64_t multiply_scratch() {
#if defined(__AMX_BF16__)
  if (M::kPack == 2) return kTileBlock * kTileSteps;
#endif
  return 0;
}

// C (m, n) (+)= A (m, kk steps) * B (kk steps, n); n is a multiple of the lanes. Writes whole
// blocks of kBlockRows rows. Every element of C is summed in the same order, whatever m and n.
template <class M>
void multiply(int64_t m, int64_t n, int64_t kk, const typename M::elem* a,
              const typename M::elem* b, typename M::acc* c, int64_t c_row, bool accumulate,
              [[maybe_unused]] typename M::elem* scratch) {
#if defined(__AMX_BF16__)
  if constexpr (M::kPack == 2) return multiply_tiles(m, n, kk, a, b, c, c_row, accumulate, scratch);
#endif
  constexpr int64_t lanes = kLanes<typename M::acc>;
  for (int64_t k = 0; k < kk; k += kDepth) {
    const int64_t depth = kk - k < kDepth ? kk - k : kDepth;
    const bool add = accumulate || k > 0;
    for_panels<M>(n, [&](int64_t n0, int64_t width) {
      const auto* left = a + k * kPanelRows;
      const auto* right = b + n0 * kk + k * width;
      if (width == 3 * lanes)
        multiply_panel<M, 3>(m, kk, depth, left, right, c + n0, c_row, add);
      else if (width == 2 * lanes)
        multiply_panel<M, 2>(m, kk, depth, left, right, c + n0, c_row, add);
      else
        multiply_panel<M, 1>(m, kk, depth, left, right, c + n0, c_row, add);
    });
  }
}

// --- packing -------------------------------------------------------------------------------
// The source's numbers are of type T: that of the mode, or a narrower one that is widened. A
// register of steps is passed around as vec<acc>, whatever its bits mean.

// Steps along a row, from p: a register full, or as many as `numbers` make and then zeros.
template <class M, class T>
LF_INLINE vec<typename M::acc> load_steps(const T* p, int64_t numbers) {
  using A = typename M::acc;
  constexpr int64_t full = kLanes<A> * M::kPack;
  if constexpr (M::kPack == 2) {
    static_assert(sizeof(T) == 2, "pairs of bfloat16");
    vec<A> v = {};
    if (numbers >= full) {
      std::memcpy(&v, p, sizeof v);
    } else {
      T part[full] = {};
      std::memcpy(static_cast<void*>(part), p, static_cast<size_t>(numbers) * sizeof(T));
      std::memcpy(&v, part, sizeof v);
    }
    return v;
  } else {
    return numbers >= full ? load_acc(p) : load_acc_n(p, numbers, A(0));
  }
}

// One step of each of the first `count` columns, from rows p and (of a pair; may be null) q.
template <class M, class T>
LF_INLINE vec<typename M::acc> load_columns(const T* p, const T* q, int64_t count) {
  using A = typename M::acc;
  if constexpr (M::kPack == 2) {
    static_assert(sizeof(T) == 2, "pairs of bfloat16");
    typedef uint32_t vec_u32 __attribute__((vector_size(kVecBytes)));
    const auto bits = [&](const T* row) {
      vec_u16 v = {};
      if (row == nullptr) return __builtin_convertvector(v, vec_u32);
      if (count >= kLanes<A>) {
        std::memcpy(&v, row, sizeof v);
      } else {
        T part[kLanes<A>] = {};
        std::memcpy(static_cast<void*>(part), row, static_cast<size_t>(count) * sizeof(T));
        std::memcpy(&v, part, sizeof v);
      }
      return __builtin_convertvector(v, vec_u32);
    };
    return (vec<A>)(bits(p) | bits(q) << 16);
  } else {
    return count >= kLanes<A> ? load_acc(p) : load_acc_n(p, count, A(0));
  }
}

// Panel column c is row c of the source, of `numbers` numbers; columns beyond `rows` are zero.
template <class M, class T>
void panel_across(const T* source, int64_t stride, int64_t rows, int64_t numbers,
                  typename M::elem* panel, int64_t width) {
  using A = typename M::acc;
  constexpr int64_t lanes = kLanes<A>;
  const int64_t kk = steps<M>(numbers);
  A* out = reinterpret_cast<A*>(panel);
  // A register of columns at a time: more rows of the source than that are more streams than the
  // processor fetches ahead of.
  for (int64_t c0 = 0; c0 < width; c0 += lanes)
    for (int64_t k = 0; k < kk; k += lanes) {
      const int64_t count = kk - k < lanes ? kk - k : lanes;
      vec<A> block[lanes];
      for (int64_t c = 0; c < lanes; ++c)
        block[c] = c0 + c < rows ? load_steps<M>(source + (c0 + c) * stride + k * M::kPack,
                                                 numbers - k * M::kPack)
                                 : vec<A>{};
      transpose<A>(block);
      for (int64_t i = 0; i < count; ++i)
        std::memcpy(out + (k + i) * width + c0, &block[i], sizeof(vec<A>));
    }
}

// Panel step k is row k of the source (a pair of rows for Bf16); columns beyond `columns` are zero.
template <class M, class T>
void panel_along(const T* source, int64_t stride, int64_t rows, int64_t columns,
                 typename M::elem* panel, int64_t width) {
  using A = typename M::acc;
  constexpr int64_t lanes = kLanes<A>;
  A* out = reinterpret_cast<A*>(panel);
  for (int64_t r = 0; r < rows; r += M::kPack, out += width) {
    const T* p = source + r * stride;
    const T* q = r + 1 < rows ? p + stride : nullptr;
    for (int64_t c = 0; c < width; c += lanes) {
      const vec<A> v = c < columns ? load_columns<M>(p + c, q ? q + c : q, columns - c) : vec<A>{};
      std::memcpy(out + c, &v, sizeof v);
    }
  }
}

// sum[c] = the sum of column c over all steps of a panel of kPanelRows columns.
template <class M>
void panel_sums(const typename M::elem* panel, int64_t kk, double* sum) {
  using A = typename M::acc;
  for (int64_t c = 0; c < kPanelRows; ++c) sum[c] = 0;
  for (int64_t k = 0; k < kk;) {
    A part[kPanelRows] = {};
    for (const int64_t end = k + 64 < kk ? k + 64 : kk; k < end; ++k)
      for (int64_t c = 0; c < kPanelRows; ++c) {
        if constexpr (M::kPack == 2) {
          const uint32_t pair = panel[k * kPanelRows + c];
          const uint32_t low = pair << 16, high = pair & 0xffff0000u;
          float x, y;
          std::memcpy(&x, &low, 4);
          std::memcpy(&y, &high, 4);
          part[c] += x + y;
        } else {
          part[c] += panel[k * kPanelRows + c];
        }
      }
    for (int64_t c = 0; c < kPanelRows; ++c) sum[c] += part[c];
  }
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
