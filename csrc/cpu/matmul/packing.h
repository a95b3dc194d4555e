// Packing: from row-major matrices to the panels of operands.h.
//
// A panel is filled in one of two ways: "transposed", each row of the source becomes a column of
// the panel, or "along", each row of the source (of Bf16: pair of rows) becomes a step. Elements
// that the source does not have are zero in the panel.
//
// The source's numbers are of type T: that of the mode, or a narrower one that is widened. A
// register of steps is passed around as vec<acc>, whatever its bits mean.
#pragma once

#include "cpu/matmul/packing_bfmmla.h"
#include "cpu/matmul/transpose.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

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
    const auto numbers = [&](const T* row) {
      vec_u16 v = {};
      if (row == nullptr) return v;
      if (count >= kLanes<A>) {
        std::memcpy(&v, row, sizeof v);
      } else {
        T part[kLanes<A>] = {};
        std::memcpy(static_cast<void*>(part), row, static_cast<size_t>(count) * sizeof(T));
        std::memcpy(&v, part, sizeof v);
      }
      return v;
    };
    return make_pairs(numbers(p), numbers(q));
  } else {
    return count >= kLanes<A> ? load_acc(p) : load_acc_n(p, count, A(0));
  }
}

// Panel column c is row c of the source, of `numbers` numbers; columns beyond `rows` are zero.
template <class M, class T>
void pack_panel_transposed(const T* source, int64_t stride, int64_t rows, int64_t numbers,
                           typename M::elem* panel, int64_t width) {
  if constexpr (M::kPack == 4) {
    pack_quads_transposed(source, stride, rows, numbers, panel, width);
  } else {
    using A = typename M::acc;
    constexpr int64_t lanes = kLanes<A>;
    const int64_t kk = steps<M>(numbers);
    A* out = reinterpret_cast<A*>(panel);
    // A register of columns at a time: more rows of the source than that are more streams than the
    // processor prefetches.
    for (int64_t c0 = 0; c0 < width; c0 += lanes)
      for (int64_t k = 0; k < kk; k += lanes) {
        const int64_t count = min(kk - k, lanes);
        vec<A> square[lanes];
        for (int64_t c = 0; c < lanes; ++c)
          square[c] = c0 + c < rows ? load_steps<M>(source + (c0 + c) * stride + k * M::kPack,
                                                    numbers - k * M::kPack)
                                    : vec<A>{};
        transpose<A>(square);
        for (int64_t i = 0; i < count; ++i)
          std::memcpy(out + (k + i) * width + c0, &square[i], sizeof(vec<A>));
      }
  }
}

// Panel step k is row k of the source (for Bf16 kPack rows); columns beyond `columns` are zero.
template <class M, class T>
void pack_panel_along(const T* source, int64_t stride, int64_t rows, int64_t columns,
                      typename M::elem* panel, int64_t width) {
  if constexpr (M::kPack == 4) {
    pack_quads_along(source, stride, rows, columns, panel, width);
  } else {
    using A = typename M::acc;
    constexpr int64_t lanes = kLanes<A>;
    A* out = reinterpret_cast<A*>(panel);
    for (int64_t r = 0; r < rows; r += M::kPack, out += width) {
      const T* p = source + r * stride;
      const T* q = r + 1 < rows ? p + stride : nullptr;
      for (int64_t c = 0; c < width; c += lanes) {
        const vec<A> v =
            c < columns ? load_columns<M>(p + c, q ? q + c : q, columns - c) : vec<A>{};
        std::memcpy(out + c, &v, sizeof v);
      }
    }
  }
}

// --- a whole B for block.h -----------------------------------------------------------------------

// B (k, n) with n = the source's rows, padded to the lanes, and k = `numbers` along a row.
template <class M>
void pack_transposed(const typename M::raw* source, int64_t stride, int64_t rows, int64_t numbers,
                     typename M::elem* b) {
  for_panels<M, BlockPanels>(round_lanes<M>(rows), [&](int64_t n0, int64_t width) {
    pack_panel_transposed<M>(source + n0 * stride, stride, rows - n0, numbers,
                             b + n0 * steps<M>(numbers), width);
  });
}

// B (k, n) with k = the source's rows and n = `columns` along a row, a multiple of the lanes.
template <class M>
void pack_along(const typename M::raw* source, int64_t stride, int64_t rows, int64_t columns,
                typename M::elem* b) {
  for_panels<M, BlockPanels>(columns, [&](int64_t n0, int64_t width) {
    pack_panel_along<M>(source + n0, stride, rows, columns - n0, b + n0 * steps<M>(rows), width);
  });
}

// --- A for few_rows.h ----------------------------------------------------------------------------

// Rows of `numbers` numbers as Fma multiplies them, each padded with zeros to `width` numbers (a
// multiple of Fma::kStep); rows [rows, padded_rows) are zero.
template <class Fma, class T>
void pack_few_rows(const T* source, int64_t stride, int64_t rows, int64_t numbers,
                   int64_t padded_rows, int64_t width, typename Fma::elem* a) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* from = source + r * stride;
    auto* to = a + r * width;
    for (int64_t k = 0; k < numbers; ++k) to[k] = Fma::pack(from[k]);
    for (int64_t k = numbers; k < width; ++k) to[k] = 0;
  }
  for (int64_t k = rows * width; k < padded_rows * width; ++k) a[k] = 0;
}

// --- reading a packed A
// ----------------------------------------------------------------------------

// sum[c] = the sum of column c over all steps of a panel of kPanelRows columns.
template <class M>
void sum_panel_columns(const typename M::elem* panel, int64_t kk, double* sum) {
  using A = typename M::acc;
  for (int64_t c = 0; c < kPanelRows; ++c) sum[c] = 0;
  for (int64_t k = 0; k < kk;) {
    A part[kPanelRows] = {};
    for (const int64_t end = min(k + 64, kk); k < end; ++k)
      for (int64_t c = 0; c < kPanelRows; ++c) {
        if constexpr (M::kPack == 2) {
          const uint32_t pair = panel[k * kPanelRows + c];
          const uint32_t low = pair << 16, high = pair & 0xffff0000u;
          float x, y;
          std::memcpy(&x, &low, 4);
          std::memcpy(&y, &high, 4);
          part[c] += x + y;
        } else if constexpr (M::kPack == 4) {
          part[c] += sum_of_step(panel[k * kPanelRows + c]);
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
