// SwiGLU, forward and backward.
//
//   out = silu(gate) * up             silu(x) = x * s(x)           s(x) = 1 / (1 + exp(-x))
//   dgate = dout * up * s * (1 + gate * (1 - s))                   dup = dout * silu(gate)
#include "cpu/swiglu.h"

#include "cpu/integers.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "cpu/simd_math.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// 1 + e^-x: x divided by it is silu(x).
template <class A>
LF_INLINE vec<A> one_plus_exp(vec<A> x) {
  vec<A> power;
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) {
    // e^-x = 2^n 2^r. The instruction that scales by 2^n handles overflow and underflow.
    const __m512 clamped = _mm512_min_ps(_mm512_set1_ps(104), (__m512)x);
    const vec<A> y = (vec<A>)_mm512_max_ps(_mm512_set1_ps(-104), clamped);  // NaN stays NaN
    const vec<A> n = (vec<A>)_mm512_roundscale_ps((__m512)(y * -kLog2e), _MM_FROUND_TO_NEAREST_INT);
    const vec<A> r = y * -kLog2eLow + (y * -kLog2e - n);
    power = (vec<A>)_mm512_scalef_ps((__m512)exp2_polynomial(r), (__m512)n);
  } else {
    power = vexp(-x);
  }
#else
  power = vexp(-x);
#endif
  return A(1) + power;
}

// f(row, first, count) for segments of rows that cover all elements once.
template <class F>
void for_segments(const SwigluArgs& a, F&& f) {
  if (a.rows == 0 || a.columns == 0) return;
  const int64_t length = min(a.columns, kItemElements);
  const int64_t segments = ceil_div(a.columns, length);  // of a row
  const int64_t item_rows = kItemElements / length;
  parallel_items(ceil_div(a.rows, item_rows) * segments, true, [&](int64_t item) {
    const int64_t first = item % segments * length, begin = item / segments * item_rows;
    const int64_t count = min(a.columns - first, length);
    const int64_t end = min(a.rows, begin + item_rows);
    for (int64_t row = begin; row < end; ++row) f(row, first, count);
  });
}

// How many of n elements lie before the first one that is aligned for streaming stores.
template <class T>
int64_t unaligned_count(const T* p, int64_t n) {
  constexpr int64_t lanes = kLanes<acc_t<T>>;
  const auto past = reinterpret_cast<uintptr_t>(p) % (lanes * sizeof(T)) / sizeof(T);
  return min(n, past == 0 ? 0 : lanes - static_cast<int64_t>(past));
}

template <class T, bool kStream>
void forward_segment(const T* gate, const T* up, T* out, int64_t n) {
  for_pieces<acc_t<T>, 2>(n, [&](auto piece, int) __attribute__((always_inline)) {
    const vec<acc_t<T>> g = piece.load(gate), u = piece.load(up);
    piece.template put<kStream>(out, g / one_plus_exp<acc_t<T>>(g) * u);
  });
}

template <class T, bool kStream>
void backward_segment(const T* gate, const T* up, const T* grad, T* grad_gate, T* grad_up,
                      int64_t n) {
  using A = acc_t<T>;
  for_pieces<A, 2>(n, [&](auto piece, int) __attribute__((always_inline)) {
    const vec<A> g = piece.load(gate), d = piece.load(grad);
    const vec<A> s = A(1) / one_plus_exp<A>(g);
    if (grad_up) piece.template put<kStream>(grad_up, d * (g * s));
    if (grad_gate) {
      const vec<A> slope = s * (A(1) + g * (A(1) - s));
      piece.template put<kStream>(grad_gate, d * piece.load(up) * slope);
    }
  });
}

template <class T>
void forward_as(const SwigluArgs& a) {
  const bool stream = worth_streaming(a.rows * a.columns * static_cast<int64_t>(sizeof(T)));
  for_segments(a, [&](int64_t row, int64_t first, int64_t n) {
    const T* gate = row_pointer<T>(a.shape, a.gate, row) + first;
    const T* up = row_pointer<T>(a.shape, a.up, row) + first;
    T* out = row_pointer<T>(a.shape, a.out, row) + first;
    if (!stream) return forward_segment<T, false>(gate, up, out, n);
    const int64_t head = unaligned_count(out, n);
    forward_segment<T, false>(gate, up, out, head);
    forward_segment<T, kCanStream>(gate + head, up + head, out + head, n - head);
    stream_fence();
  });
}

template <class T>
void backward_as(const SwigluArgs& a) {
  const bool stream = worth_streaming(a.rows * a.columns * static_cast<int64_t>(sizeof(T)));
  for_segments(a, [&](int64_t row, int64_t first, int64_t n) {
    const T* gate = row_pointer<T>(a.shape, a.gate, row) + first;
    const T* up = row_pointer<T>(a.shape, a.up, row) + first;
    const T* grad = row_pointer<T>(a.shape, a.grad_out, row) + first;
    T* grad_gate = a.grad_gate.data ? row_pointer<T>(a.shape, a.grad_gate, row) + first : nullptr;
    T* grad_up = a.grad_up.data ? row_pointer<T>(a.shape, a.grad_up, row) + first : nullptr;
    const T* out = grad_gate ? grad_gate : grad_up;
    const int64_t head = unaligned_count(out, n);
    const bool same_alignment = !grad_gate || !grad_up || unaligned_count(grad_up, n) == head;
    if (!stream || !same_alignment)
      return backward_segment<T, false>(gate, up, grad, grad_gate, grad_up, n);
    backward_segment<T, false>(gate, up, grad, grad_gate, grad_up, head);
    backward_segment<T, kCanStream>(gate + head, up + head, grad + head,
                                    grad_gate ? grad_gate + head : nullptr,
                                    grad_up ? grad_up + head : nullptr, n - head);
    stream_fence();
  });
}

}  // namespace

void swiglu_forward(const SwigluArgs& a) {
  with_element_type(a.gate.dtype, [&](auto t) { forward_as<decltype(t)>(a); });
}

void swiglu_backward(const SwigluArgs& a) {
  with_element_type(a.gate.dtype, [&](auto t) { backward_as<decltype(t)>(a); });
}

}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
