// Operands of the matrix products: how numbers are stored, multiplied and summed, and the memory
// layout of packed operands.
//
// A "step" of k is one element of a packed operand: one number for F32 and F64; for Bf16 (bf16.h)
// the consecutive bfloat16 numbers that an instruction multiplies together, two for vdpbf16ps and
// four for bfmmla.
//
// A packed operand consists of panels. A panel of width w holds the w numbers of step 0, then those
// of step 1, and so on. The panel that starts at row (of A) or column (of B) i of an operand with
// kk steps begins at element i * kk.
#pragma once

#include <type_traits>

#include "cpu/integers.h"
#include "cpu/matmul/bf16.h"
#include "cpu/simd.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// --- element types of packed products (template parameter M) ---------------------------------

struct F32 {
  using acc = float;               // type of C
  using raw = float;               // one number of A and B
  using elem = float;              // one step
  static constexpr int kPack = 1;  // numbers in a step
  static LF_INLINE vec<float> fma(vec<float> c, const elem* a, vec<float> b) { return *a * b + c; }
};

struct F64 {
  using acc = double;
  using raw = double;
  using elem = double;
  static constexpr int kPack = 1;
  static LF_INLINE vec<double> fma(vec<double> c, const elem* a, vec<double> b) {
    return *a * b + c;
  }
};

// Number of steps of k numbers.
template <class M>
LF_INLINE int64_t steps(int64_t k) {
  return ceil_div(k, M::kPack);
}

// n rounded up to whole registers of sums.
template <class M>
LF_INLINE int64_t round_lanes(int64_t n) {
  return round_up(n, kLanes<typename M::acc>);
}

// --- panels ----------------------------------------------------------------------------------

// Panels of B for large.h: 3 registers of columns, at the end 2 or 1.
struct LargePanels {
  static constexpr int kVecs = 3;
  // Registers of the panel that starts where `left` registers remain.
  static LF_INLINE int64_t vecs(int64_t left) { return min(left, kVecs); }
};

// Panels of B for block.h: 4 registers of columns (2 of 16 registers), then 2, then 1.
struct BlockPanels {
  static constexpr int kVecs = kVecRegisters / 8;
  static LF_INLINE int64_t vecs(int64_t left) { return left >= kVecs ? kVecs : left >= 2 ? 2 : 1; }
};

// f(first column, width) for the panels of a B with n columns, a multiple of the lanes.
template <class M, class Panels, class F>
LF_INLINE void for_panels(int64_t n, F&& f) {
  constexpr int64_t lanes = kLanes<typename M::acc>;
  for (int64_t n0 = 0; n0 < n;) {
    const int64_t width = Panels::vecs((n - n0) / lanes) * lanes;
    f(n0, width);
    n0 += width;
  }
}

// Rows in a panel of A (for large.h).
constexpr int64_t kPanelRows = 16;

// --- the locations of operands, as drivers take them ------------------------------------------

// A in place: element (row m, step k) is at p[m * row + k * step].
template <class M>
struct StridedA {
  const typename M::elem* p;
  int64_t row, step;
};

// B, packed with this many columns (a multiple of the lanes) and steps.
template <class M>
struct PackedB {
  const typename M::elem* p;
  int64_t columns, steps;
};

// A few rows of A packed for few_rows.h: `width` numbers from row to row.
template <class Fma>
struct FewRows {
  const typename Fma::elem* p;
  int64_t rows, width;
};

// `rows` rows of B' in place, `stride` numbers from row to row.
template <class T>
struct RowsInPlace {
  const T* p;
  int64_t stride, rows;
};

// --- element types of products with rows in place (template parameter Fma) ---------------------

// Products of numbers of T in the type computed in. A is widened when it is packed, B when it is
// read.
template <class T>
struct WideningFma {
  using acc = acc_t<T>;
  using elem = acc;                              // of packed A
  static constexpr int64_t kStep = kLanes<acc>;  // numbers multiplied at a time
  static elem pack(T x) { return load_one(&x); }
  static LF_INLINE vec<acc> fma(vec<acc> c, const elem* a, const T* b) {
    return load(a) * load_acc(b) + c;
  }
  // The first n numbers of b only; a is padded to whole registers.
  static LF_INLINE vec<acc> fma_n(vec<acc> c, const elem* a, const T* b, int64_t n) {
    return load(a) * load_acc_n(b, n, acc(0)) + c;
  }
};

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
