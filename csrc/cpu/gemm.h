// Register-tiled matrix products on packed operands, for the tiles of the attention kernels.
//
// C[m, n] (+)= sum_k A[m, k] * B[k, n].  A is read one element at a time and broadcast, so it may
// have any strides. B is packed in panels of 4, 2 or 1 registers; n runs along the lanes. The
// panel that starts at column n0 of a B with kk steps begins at element n0 * kk.
//
// A "step" of k is one element of the mode: one number for F32 and F64, a pair of bfloat16
// numbers along k for Bf16 (the operand of the vdpbf16ps instruction).
#pragma once

#include <type_traits>

#include "cpu/simd.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

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

#if defined(__AVX512BF16__)
struct Bf16 {
  using acc = float;
  using raw = uint16_t;
  using elem = uint32_t;
  static constexpr int kPack = 2;
  static LF_INLINE vec<float> fma(vec<float> c, const elem* a, vec<float> b) {
    return fma(c, _mm512_set1_epi32(static_cast<int>(*a)), (__m512i)b);
  }
  static LF_INLINE vec<float> fma(vec<float> c, __m512i a, __m512i b) {
    return (vec<float>)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
  }
};
#endif

#if defined(__AVX512F__)
constexpr int kTileRows = 6, kTileVecs = 4;  // 24 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int kTileRows = 6, kTileVecs = 2;  // 12 of 16
#else
constexpr int kTileRows = 4, kTileVecs = 2;
#endif

template <class M>
constexpr int kMaxPanel = kTileVecs * kLanes<typename M::acc>;

// Columns of the panel that starts where `left` columns (a multiple of the lanes) remain.
template <class M>
LF_INLINE int64_t panel_width(int64_t left) {
  constexpr int64_t lanes = kLanes<typename M::acc>;
  if (left >= kTileVecs * lanes) return kTileVecs * lanes;
  return left >= 2 * lanes ? 2 * lanes : lanes;
}

template <class M>
LF_INLINE int64_t round_lanes(int64_t n) {
  constexpr int64_t lanes = kLanes<typename M::acc>;
  return (n + lanes - 1) / lanes * lanes;
}

template <class M>
LF_INLINE int64_t steps(int64_t k) {
  return (k + M::kPack - 1) / M::kPack;
}

// A: element (m, step k) is at p[m * row + k * step].
template <class M>
struct Left {
  const typename M::elem* p;
  int64_t row, step;
};

// B, packed with this many columns (a multiple of the lanes) and steps.
template <class M>
struct Packed {
  const typename M::elem* p;
  int64_t columns, steps;
};

// One tile of C. `b_step` is the width of the panel, of which the first Vecs registers are used.
template <class M, int Rows, int Vecs>
LF_INLINE void tile(int64_t kk, const typename M::elem* a, int64_t a_row, int64_t a_step,
                    const typename M::elem* b, int64_t b_step, typename M::acc* c, int64_t c_row,
                    bool accumulate) {
  using V = vec<typename M::acc>;
  constexpr int lanes = kLanes<typename M::acc>;
  V sum[Rows][Vecs];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vecs; ++v) sum[r][v] = V{};
  for (int64_t k = 0; k < kk; ++k) {
    V panel[Vecs];
#pragma GCC unroll 8
    for (int v = 0; v < Vecs; ++v) std::memcpy(&panel[v], b + v * lanes, sizeof(V));
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < Vecs; ++v) sum[r][v] = M::fma(sum[r][v], a + r * a_row, panel[v]);
    a += a_step;
    b += b_step;
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vecs; ++v) {
      typename M::acc* out = c + r * c_row + v * lanes;
      store(out, accumulate ? load(out) + sum[r][v] : sum[r][v]);
    }
}

// Sums are made in runs of this many steps and then added up: the rounding error of a long sum
// grows with the square root of the longest run.
constexpr int64_t kRun = 64;

template <class M, int Vecs>
void panel_product(int64_t m, int64_t kk, Left<M> a, const typename M::elem* b, int64_t b_step,
                   typename M::acc* c, int64_t c_row, bool accumulate) {
  while (kk > kRun + kRun / 2) {
    panel_product<M, Vecs>(m, kRun, a, b, b_step, c, c_row, accumulate);
    a.p += kRun * a.step;
    b += kRun * b_step;
    kk -= kRun;
    accumulate = true;
  }
  int64_t i = 0;
  const auto rows = [&](auto count) {
    constexpr int n = decltype(count)::value;
    for (; i + n <= m; i += n)
      tile<M, n, Vecs>(kk, a.p + i * a.row, a.row, a.step, b, b_step, c + i * c_row, c_row,
                       accumulate);
  };
  rows(std::integral_constant<int, kTileRows>{});
  rows(std::integral_constant<int, 2>{});
  rows(std::integral_constant<int, 1>{});
}

// C (m, n) (+)= A (m, kk steps) * B (steps [first, first + kk), the first n columns); n is a
// multiple of the lanes.
template <class M>
void product(int64_t m, int64_t n, int64_t kk, Left<M> a, Packed<M> b, typename M::acc* c,
             int64_t c_row, bool accumulate, int64_t first = 0) {
  constexpr int lanes = kLanes<typename M::acc>;
  for (int64_t n0 = 0; n0 < n;) {
    const int64_t width = panel_width<M>(b.columns - n0);
    const int64_t vecs = (n - n0 < width ? n - n0 : width) / lanes;
    const typename M::elem* panel = b.p + n0 * b.steps + first * width;
    typename M::acc* out = c + n0;
    if constexpr (kTileVecs == 4) {
      if (vecs == 4) panel_product<M, 4>(m, kk, a, panel, width, out, c_row, accumulate);
      if (vecs == 3) panel_product<M, 3>(m, kk, a, panel, width, out, c_row, accumulate);
    }
    if (vecs == 2) panel_product<M, 2>(m, kk, a, panel, width, out, c_row, accumulate);
    if (vecs == 1) panel_product<M, 1>(m, kk, a, panel, width, out, c_row, accumulate);
    n0 += width;
  }
}

// --- packing -------------------------------------------------------------------------------
// Source: `rows` rows of numbers, `stride` raw numbers apart (a multiple of kPack), each padded
// with zeros to whole steps. Rows beyond `rows` count as zero.

// A square as wide as a register, transposed in log2(lanes) rounds: each exchanges halves,
// quarters,
// ... of the squares within it.
template <class E>
LF_INLINE void transpose(const E* in, int64_t in_row, E* out, int64_t out_row) {
  constexpr int n = kLanes<E>;
#if defined(__clang__)  // has no shuffle by a vector of indices
  for (int i = 0; i < n; ++i)
    for (int k = 0; k < n; ++k) out[k * out_row + i] = in[i * in_row + k];
#else
  using Integer = std::conditional_t<sizeof(E) == 4, int32_t, int64_t>;
  using V = vec<Integer>;
  V rows[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) std::memcpy(&rows[i], in + i * in_row, sizeof(V));
#pragma GCC unroll 4
  for (int half = n / 2; half > 0; half /= 2) {
    V low{}, high{};  // lanes of the pair (a, b): a's and b's where bit `half` is 0, where it is 1
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) {
      low[i] = i & half ? n + i - half : i;
      high[i] = i & half ? n + i : i + half;
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i)
      if (!(i & half)) {
        const V a = rows[i], b = rows[i + half];
        rows[i] = __builtin_shuffle(a, b, low);
        rows[i + half] = __builtin_shuffle(a, b, high);
      }
  }
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) std::memcpy(out + i * out_row, &rows[i], sizeof(V));
#endif
}

// B with n = the source's rows (padded to the lanes), k = along a row: a transpose.
template <class M>
void pack_transposed(const typename M::raw* source, int64_t stride, int64_t rows, int64_t kk,
                     typename M::elem* b) {
  const auto* in = reinterpret_cast<const typename M::elem*>(source);
  const int64_t in_row = stride / M::kPack, n = round_lanes<M>(rows);
  for (int64_t n0 = 0; n0 < n;) {
    const int64_t width = panel_width<M>(n - n0), filled = rows - n0 < width ? rows - n0 : width;
    typename M::elem* panel = b + n0 * kk;
    constexpr int64_t kSquare = kLanes<typename M::elem>;
    for (int64_t k0 = 0; k0 < kk; k0 += kSquare) {
      const int64_t k1 = k0 + kSquare < kk ? k0 + kSquare : kk;
      int64_t c = 0;
      if (k1 == k0 + kSquare)
        for (; c + kSquare <= filled; c += kSquare)
          transpose(in + (n0 + c) * in_row + k0, in_row, panel + k0 * width + c, width);
      for (; c < filled; ++c)
        for (int64_t k = k0; k < k1; ++k) panel[k * width + c] = in[(n0 + c) * in_row + k];
      for (; c < width; ++c)
        for (int64_t k = k0; k < k1; ++k) panel[k * width + c] = 0;
    }
    n0 += width;
  }
}

// B with n = along a row (n a multiple of the lanes, rows at least that long), k = the source's
// rows.
template <class M>
void pack_rows(const typename M::raw* source, int64_t stride, int64_t rows, int64_t n,
               typename M::elem* b) {
  const int64_t kk = steps<M>(rows);
  for (int64_t n0 = 0; n0 < n;) {
    const int64_t width = panel_width<M>(n - n0);
    typename M::elem* out = b + n0 * kk;
    for (int64_t k = 0; k < kk; ++k, out += width) {
      const typename M::raw* first = source + k * M::kPack * stride + n0;
      if constexpr (M::kPack == 1) {
        std::memcpy(out, first, static_cast<size_t>(width) * sizeof(typename M::elem));
      } else {
        const bool pair = k * 2 + 1 < rows;
        for (int64_t c = 0; c < width; ++c)
          out[c] = first[c] | (pair ? static_cast<uint32_t>(first[stride + c]) << 16 : 0u);
      }
    }
    n0 += width;
  }
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
