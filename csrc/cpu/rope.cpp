// Rotary position embedding: every pair (a, b) becomes (a cos - b sin, b cos + a sin).
#include "cpu/rope.h"

#include "cpu/integers.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// x c + q s. The intrinsics fix which of the two products is rounded, so that both layouts give
// the same bits.
template <class A>
LF_INLINE vec<A> rotate(vec<A> x, vec<A> q, vec<A> c, vec<A> s) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 8) {
    return (vec<A>)_mm512_fmadd_pd((__m512d)x, (__m512d)c, (__m512d)(q * s));
  } else {
    return (vec<A>)_mm512_fmadd_ps((__m512)x, (__m512)c, (__m512)(q * s));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(A) == 8) {
    return (vec<A>)_mm256_fmadd_pd((__m256d)x, (__m256d)c, (__m256d)(q * s));
  } else {
    return (vec<A>)_mm256_fmadd_ps((__m256)x, (__m256)c, (__m256)(q * s));
  }
#elif defined(__aarch64__)
  if constexpr (sizeof(A) == 8) {
    return (vec<A>)vfmaq_f64((float64x2_t)(q * s), (float64x2_t)x, (float64x2_t)c);
  } else {
    return (vec<A>)vfmaq_f32((float32x4_t)(q * s), (float32x4_t)x, (float32x4_t)c);
  }
#else
  return x * c + q * s;
#endif
}

// Pairs (d, d + pairs). `sign` is -1 for the inverse rotation.
template <class T, bool kStream>
LF_INLINE void rotate_halves(const T* x, T* y, const acc_t<T>* cos, const acc_t<T>* sin,
                             acc_t<T> sign, int64_t pairs) {
  using A = acc_t<T>;
  for_pieces<A, 1>(pairs, [&](auto piece, int) __attribute__((always_inline)) {
    const vec<A> a = piece.load(x), b = piece.load(x + pairs);
    const vec<A> c = piece.load(cos), s = piece.load(sin) * sign;
    piece.template put<kStream>(y, rotate<A>(a, b, c, -s));
    piece.template put<kStream>(y + pairs, rotate<A>(b, a, c, s));
  });
}

// Pairs (2d, 2d + 1).
template <class T>
LF_INLINE void rotate_interleaved(const T* x, T* y, const acc_t<T>* cos, const acc_t<T>* sin,
                                  acc_t<T> sign, int64_t pairs) {
  using A = acc_t<T>;
  int64_t d = 0;
  if constexpr (sizeof(A) == 4) {
    // A pair is one 64-bit lane: a shift by 32 bits moves one number to the place of the other.
    typedef uint64_t vec_pairs __attribute__((vector_size(kVecBytes)));
    typedef uint32_t vec_table __attribute__((vector_size(kVecBytes / 2)));
    constexpr int64_t lanes = kLanes<A> / 2;
    const uint64_t flip = uint64_t{1} << (sign < 0 ? 63 : 31);  // the sign of one of the sines
    const auto twice = [](const A* table) {  // each number in both halves of a lane
      vec_table half;
      std::memcpy(&half, table, sizeof half);
#if defined(__AVX512F__)
      const auto low = (vec_pairs)_mm512_cvtepu32_epi64((__m256i)half);
#elif defined(__AVX2__)
      const auto low = (vec_pairs)_mm256_cvtepu32_epi64((__m128i)half);
#elif defined(__aarch64__)
      const auto low = (vec_pairs)vmovl_u32((uint32x2_t)half);
#else
      const vec_pairs low = __builtin_convertvector(half, vec_pairs);
#endif
      return low | low << 32;
    };
    for (; d + lanes <= pairs; d += lanes) {
      const vec<A> v = load_acc(x + 2 * d);
      const vec<A> swapped = (vec<A>)((vec_pairs)v << 32 | (vec_pairs)v >> 32);
      const vec<A> c = (vec<A>)twice(cos + d), s = (vec<A>)(twice(sin + d) ^ flip);
      store_acc(y + 2 * d, rotate<A>(v, swapped, c, s));
    }
  }
  constexpr int64_t lanes = kLanes<A>;
  for (; d < pairs; d += lanes) {
    const int64_t n = min(pairs - d, lanes);
    A a[lanes] = {}, b[lanes] = {};
    for (int64_t i = 0; i < n; ++i) {
      a[i] = load_one(x + 2 * (d + i));
      b[i] = load_one(x + 2 * (d + i) + 1);
    }
    const vec<A> c = load_acc_n(cos + d, n, A(0)), s = load_acc_n(sin + d, n, A(0)) * sign;
    const vec<A> va = load(a), vb = load(b);
    store(a, rotate<A>(va, vb, c, -s));
    store(b, rotate<A>(vb, va, c, s));
    for (int64_t i = 0; i < n; ++i) {
      store_one(y + 2 * (d + i), a[i]);
      store_one(y + 2 * (d + i) + 1, b[i]);
    }
  }
}

template <class T>
class Rotation {
 public:
  using A = acc_t<T>;

  explicit Rotation(const RopeArgs& a) : a_(a), sign_(a.inverse ? A(-1) : A(1)) {}

  void run() {
    const int64_t size = 2 * a_.pairs;
    if (size == 0) return;
    rows_per_item_ = max(1, kItemElements / size);
    const int64_t q_items = items(a_.q), all_items = q_items + items(a_.k);
    const bool stream_q = may_stream(a_.q), stream_k = may_stream(a_.k);
    const bool worth_threads = (rows(a_.q) + rows(a_.k)) * size > kItemElements;
    parallel_items(all_items, worth_threads, [&](int64_t item) {
      const bool of_q = item < q_items;
      const RopeHeads& t = of_q ? a_.q : a_.k;
      const int64_t first = (of_q ? item : item - q_items) * rows_per_item_;
      if (of_q ? stream_q : stream_k) {
        rotate_rows<kCanStream>(t, first);
        stream_fence();
      } else {
        rotate_rows<false>(t, first);
      }
    });
  }

 private:
  int64_t rows(const RopeHeads& t) const { return a_.batch * t.heads * a_.positions; }
  int64_t items(const RopeHeads& t) const { return ceil_div(rows(t), rows_per_item_); }

  bool may_stream(const RopeHeads& t) const {
    constexpr int64_t bytes = kLanes<A> * static_cast<int64_t>(sizeof(T));
    constexpr int64_t element = sizeof(T);
    bool aligned = reinterpret_cast<uintptr_t>(t.out) % bytes == 0;
    aligned &= a_.pairs * element % bytes == 0 && !a_.interleaved;
    for (const int64_t stride : t.out_strides) aligned &= stride * element % bytes == 0;
    return aligned && worth_streaming((rows(a_.q) + rows(a_.k)) * a_.pairs * 2 * element);
  }

  // Visits rows in the order in which they lie in memory: (B,S,H) or (B,H,S).
  template <bool kStream>
  void rotate_rows(const RopeHeads& t, int64_t first) const {
    const bool heads_inside = t.in_strides[1] < t.in_strides[2];
    const int64_t inner = heads_inside ? t.heads : a_.positions;
    const int64_t middle = heads_inside ? a_.positions : t.heads;
    const int64_t last = min(rows(t), first + rows_per_item_);
    int64_t i = first % inner, m = first / inner % middle, b = first / inner / middle;
    for (int64_t row = first; row < last; ++row) {
      const int64_t h = heads_inside ? i : m, s = heads_inside ? m : i;
      const T* x = static_cast<const T*>(t.in) + b * t.in_strides[0] + h * t.in_strides[1] +
                   s * t.in_strides[2];
      T* y = static_cast<T*>(t.out) + b * t.out_strides[0] + h * t.out_strides[1] +
             s * t.out_strides[2];
      const A* cos = static_cast<const A*>(a_.cos) + b * a_.cos_strides[0] + s * a_.cos_strides[1];
      const A* sin = static_cast<const A*>(a_.sin) + b * a_.sin_strides[0] + s * a_.sin_strides[1];
      if (a_.interleaved) {
        rotate_interleaved(x, y, cos, sin, sign_, a_.pairs);
      } else {
        rotate_halves<T, kStream>(x, y, cos, sin, sign_, a_.pairs);
      }
      if (++i == inner) {
        i = 0;
        if (++m == middle) {
          m = 0;
          ++b;
        }
      }
    }
  }

  const RopeArgs& a_;
  A sign_;
  int64_t rows_per_item_ = 1;
};

}  // namespace

void rope(const RopeArgs& a) {
  with_element_type(a.dtype, [&](auto t) { Rotation<decltype(t)>(a).run(); });
}

}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
