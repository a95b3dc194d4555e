// Loops over the logits of a row, a block at a time, for cross_entropy_row.h. A block stays in the
// L1 cache, so that memory is read once.
#pragma once

#include <limits>

#include "cpu/cross_entropy.h"
#include "cpu/integers.h"
#include "cpu/simd_math.h"
#include "cpu/stream.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int64_t kBlock = 1024;  // logits

// f(v, c) for the vectors of z[0, n); c is a vector's first element. Lanes past the end of the last
// one hold `fill`.
template <class T, class F>
LF_INLINE void for_vectors(const T* z, int64_t n, acc_t<T> fill, F&& f) {
  constexpr int64_t lanes = kLanes<acc_t<T>>;
  int64_t c = 0;
  for (; c + lanes <= n; c += lanes) f(load_acc(z + c), c);
  if (c < n) f(load_acc_n(z + c, n - c, fill), c);
}

// e^x, as accurate as logits or gradients of type T require.
template <class T>
LF_INLINE vec<acc_t<T>> exp_for(vec<acc_t<T>> x) {
  if constexpr (sizeof(T) == 2) {
    return vexp_coarse(x);
  } else {
    return vexp_softmax(x);
  }
}

template <class T>
LF_INLINE acc_t<T> block_max(const T* z, int64_t n) {
  constexpr acc_t<T> lowest = -std::numeric_limits<acc_t<T>>::infinity();
  vec<acc_t<T>> largest = set1(lowest);
  for_vectors(z, n, lowest, [&](vec<acc_t<T>> v, int64_t) { largest = vmax(largest, v); });
  return reduce_max<acc_t<T>>(largest);
}

// sum exp(z - shift), and the maximum of z in the same pass.
template <class T>
LF_INLINE acc_t<T> block_exp_sum(const T* z, int64_t n, acc_t<T> shift, acc_t<T>* max) {
  using A = acc_t<T>;
  constexpr int kChains = 4;  // independent sums, so that additions do not wait for each other
  constexpr int64_t lanes = kLanes<A>, step = kChains * lanes;
  constexpr A lowest = -std::numeric_limits<A>::infinity();
  vec<A> sum[kChains], largest[kChains];
#pragma GCC unroll 8
  for (int k = 0; k < kChains; ++k) {
    sum[k] = vec<A>{};
    largest[k] = set1(lowest);
  }
  int64_t c = 0;
  for (; c + step <= n; c += step) {
#pragma GCC unroll 8
    for (int k = 0; k < kChains; ++k) {
      const vec<A> v = load_acc(z + c + k * lanes);
      largest[k] = vmax(largest[k], v);
      sum[k] += exp_for<T>(v - shift);
    }
  }
  for_vectors(z + c, n - c, lowest, [&](vec<A> v, int64_t) {
    largest[0] = vmax(largest[0], v);
    sum[0] += exp_for<T>(v - shift);
  });
  *max = reduce_max<A>(vmax(vmax(largest[0], largest[1]), vmax(largest[2], largest[3])));
  return reduce_add<A>((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// out = x in the accumulation type, softcapped unless softcap is 0. Writes whole vectors: `out` has
// room for kBlock elements, as every temporary of a block has.
template <class T>
LF_INLINE void widen_block(const T* x, int64_t n, acc_t<T> softcap, acc_t<T>* out) {
  using A = acc_t<T>;
  for_vectors(x, n, A(0), [&](vec<A> v, int64_t c) {
    if (softcap != 0) v = vtanh(v / softcap) * softcap;
    store(out + c, v);
  });
}

// scale * t_c * w_c for the part of the target that is spread over the classes: e / V for a class
// index, all of it for probabilities. Zeros up to a whole vector. `q` and `weight` may be null.
template <class A>
LF_INLINE void spread_target(const A* q, const A* weight, int64_t n, double smoothing, double each,
                             double scale, A* out) {
  constexpr int64_t lanes = kLanes<A>;
  const A kept = static_cast<A>((1 - smoothing) * scale), flat = static_cast<A>(each * scale);
  for (int64_t c = 0; c < n; c += lanes) {
    const bool whole = c + lanes <= n;
    vec<A> t = set1(flat);
    if (q) t += kept * (whole ? load(q + c) : load_acc_n(q + c, n - c, A(0)));
    if (weight) t *= whole ? load(weight + c) : load_acc_n(weight + c, n - c, A(0));
    store(out + c, t);
  }
  for (int64_t c = n; c % lanes != 0; ++c) out[c] = 0;
}

// sum_c u_c and sum_c u_c (z_c - shift).
template <class T>
LF_INLINE void block_weighted_sums(const T* z, const acc_t<T>* u, int64_t n, acc_t<T> shift,
                                   double* weights, double* weighted) {
  using A = acc_t<T>;
  // Several sums, because adding many equal numbers to one would round them all the same way.
  constexpr int kChains = 4;
  vec<A> sum_u[kChains] = {}, sum_uz[kChains] = {};
  for_vectors(z, n, shift, [&](vec<A> v, int64_t c) {
    const vec<A> uv = load(u + c);
    const int64_t k = c / kLanes<A> % kChains;
    sum_u[k] += uv;
    sum_uz[k] += uv * (v - shift);
  });
  *weights += reduce_add<A>((sum_u[0] + sum_u[1]) + (sum_u[2] + sum_u[3]));
  *weighted += reduce_add<A>((sum_uz[0] + sum_uz[1]) + (sum_uz[2] + sum_uz[3]));
}

// f(z, begin, n) for the blocks of a row; z points to the (softcapped) logits of the block.
template <class T, class F>
LF_INLINE void for_blocks(const T* x, int64_t classes, double softcap, F&& f) {
  acc_t<T> capped[kBlock];
  for (int64_t begin = 0; begin < classes; begin += kBlock) {
    const int64_t n = min(classes - begin, kBlock);
    if (softcap != 0) {
      widen_block<T>(x + begin, n, static_cast<acc_t<T>>(softcap), capped);
      f(static_cast<const acc_t<T>*>(capped), begin, n);
    } else {
      f(x + begin, begin, n);
    }
  }
}

template <bool kStream, class T>
LF_INLINE void put(T* p, vec<acc_t<T>> v) {
  if constexpr (kStream) {
    stream_acc(p, v);
  } else {
    store_acc(p, v);
  }
}

// tanh = tanh(x / softcap) and z = softcap * tanh, as widen_block has it; z may be x. The gradient
// takes its slope from the former, because z is rounded once more, which leaves 1 - tanh^2 few
// digits where that is small. Both are stored so that the compiler cannot contract softcap * tanh -
// shift into one operation, rounded once: the sum of the row was taken over rounded z.
template <class T>
LF_INLINE void squash_block(const T* x, int64_t n, acc_t<T> softcap, acc_t<T>* z, acc_t<T>* tanh) {
  for_vectors(x, n, acc_t<T>(0), [&](vec<acc_t<T>> v, int64_t c) {
    v = vtanh(v / softcap);
    store(tanh + c, v);
    store(z + c, v * softcap);
  });
}

// dx = (exp(z - shift) * scale - u) * (1 - tanh^2) over one block, where u is an array or, when
// that is null, the number `flat`. z may be dx.
template <bool kSpread, bool kCapped, bool kStream, class U, class T>
LF_INLINE void write_block(const U* z, T* dx, int64_t n, acc_t<T> shift, acc_t<T> scale,
                           acc_t<T> flat, const acc_t<T>* u, const acc_t<T>* tanh) {
  using A = acc_t<T>;
  constexpr int64_t lanes = kLanes<A>;
  const auto gradient = [&](vec<A> v, vec<A> uv, int64_t c) {
    vec<A> d = exp_for<T>(v - shift) * scale - uv;
    if constexpr (kCapped) {
      const vec<A> t = load(tanh + c);
      d *= A(1) - t * t;
    }
    return d;
  };
  const auto partly = [&](int64_t c, int64_t count) {
    const vec<A> uv = kSpread ? load(u + c) : set1(flat);
    store_acc_n(dx + c, gradient(load_acc_n(z + c, count, shift), uv, c), count);
  };
  int64_t c = 0;
  if constexpr (kStream) {  // up to the first aligned vector
    const auto behind = reinterpret_cast<uintptr_t>(dx) % (lanes * sizeof(T)) / sizeof(T);
    if (behind != 0) {
      c = lanes - static_cast<int64_t>(behind);
      if (c > n) c = n;
      partly(0, c);
    }
  }
  for (; c + lanes <= n; c += lanes)
    put<kStream>(dx + c, gradient(load_acc(z + c), kSpread ? load(u + c) : set1(flat), c));
  if (c < n) partly(c, n - c);
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
