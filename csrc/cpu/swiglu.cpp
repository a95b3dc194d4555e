// SwiGLU, forward and backward.
//
//   out = silu(gate) * up             silu(x) = x * s(x)           s(x) = 1 / (1 + exp(-x))
//   dgate = dout * up * s * (1 + gate * (1 - s))                   dup = dout * silu(gate)
#include "cpu/swiglu.h"

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
    // e^-x = 2^n 2^r: the instruction that scales by 2^n also overflows and underflows as it
    // should.
    constexpr float kLog2e = 1.44269504088896341f, kLog2eLow = 1.925963033500e-8f;
    const __m512 clamped = _mm512_min_ps(_mm512_set1_ps(104), (__m512)x);
    const vec<A> y = (vec<A>)_mm512_max_ps(_mm512_set1_ps(-104), clamped);  // a NaN comes through
    const vec<A> n = (vec<A>)_mm512_roundscale_ps((__m512)(y * -kLog2e), _MM_FROUND_TO_NEAREST_INT);
    const vec<A> r = y * -kLog2eLow + (y * -kLog2e - n);
    vec<A> p = r * 0.00015328594599850476f + 0.001339098671451211f;
    p = p * r + 0.009618501178920269f;
    p = p * r + 0.05550359562039375f;
    p = p * r + 0.24022647738456726f;
    p = p * r + 0.6931471824645996f;
    p = p * r + 1.0f;
    power = (vec<A>)_mm512_scalef_ps((__m512)p, (__m512)n);
  } else {
    power = vexp(-x);
  }
#else
  power = vexp(-x);
#endif
  return A(1) + power;
}

// f(row, first, count) for stretches of rows that cover everything once.
template <class F>
void for_stretches(const SwigluArgs& a, F&& f) {
  if (a.rows == 0 || a.columns == 0) return;
  const int64_t length = a.columns < kItemElements ? a.columns : kItemElements;
  const int64_t stretches = (a.columns + length - 1) / length;
  const int64_t rows = kItemElements / length;
  const int64_t groups = (a.rows + rows - 1) / rows;
  parallel_items(groups * stretches, true, [&](int64_t item) {
    const int64_t first = item % stretches * length, begin = item / stretches * rows;
    const int64_t count = a.columns - first < length ? a.columns - first : length;
    const int64_t end = a.rows < begin + rows ? a.rows : begin + rows;
    for (int64_t row = begin; row < end; ++row) f(row, first, count);
  });
}

// How many of n elements lie before the first one at which p is aligned for streaming.
template <class T>
int64_t unaligned(const T* p, int64_t n) {
  constexpr int64_t lanes = kLanes<acc_t<T>>;
  const auto behind = reinterpret_cast<uintptr_t>(p) % (lanes * sizeof(T)) / sizeof(T);
  const int64_t ahead = behind == 0 ? 0 : lanes - static_cast<int64_t>(behind);
  return ahead < n ? ahead : n;
}

template <class T, bool kStream>
void forward_stretch(const T* gate, const T* up, T* out, int64_t n) {
  for_pieces<acc_t<T>, 2>(n, [&](auto piece, int) __attribute__((always_inline)) {
    const vec<acc_t<T>> g = piece.load(gate), u = piece.load(up);
    piece.template put<kStream>(out, g / one_plus_exp<acc_t<T>>(g) * u);
  });
}

template <class T, bool kStream>
void backward_stretch(const T* gate, const T* up, const T* grad, T* grad_gate, T* grad_up,
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
  for_stretches(a, [&](int64_t row, int64_t first, int64_t n) {
    const T* gate = row_pointer<T>(a.shape, a.gate, row) + first;
    const T* up = row_pointer<T>(a.shape, a.up, row) + first;
    T* out = row_pointer<T>(a.shape, a.out, row) + first;
    if (!stream) return forward_stretch<T, false>(gate, up, out, n);
    const int64_t head = unaligned(out, n);
    forward_stretch<T, false>(gate, up, out, head);
    forward_stretch<T, kCanStream>(gate + head, up + head, out + head, n - head);
    stream_fence();
  });
}

template <class T>
void backward_as(const SwigluArgs& a) {
  const bool stream = worth_streaming(a.rows * a.columns * static_cast<int64_t>(sizeof(T)));
  for_stretches(a, [&](int64_t row, int64_t first, int64_t n) {
    const T* gate = row_pointer<T>(a.shape, a.gate, row) + first;
    const T* up = row_pointer<T>(a.shape, a.up, row) + first;
    const T* grad = row_pointer<T>(a.shape, a.grad_out, row) + first;
    T* grad_gate = a.grad_gate.data ? row_pointer<T>(a.shape, a.grad_gate, row) + first : nullptr;
    T* grad_up = a.grad_up.data ? row_pointer<T>(a.shape, a.grad_up, row) + first : nullptr;
    const T* out = grad_gate ? grad_gate : grad_up;
    const int64_t head = unaligned(out, n);
    const bool alike = !grad_gate || !grad_up || unaligned(grad_up, n) == head;
    if (!stream || !alike) return backward_stretch<T, false>(gate, up, grad, grad_gate, grad_up, n);
    backward_stretch<T, false>(gate, up, grad, grad_gate, grad_up, head);
    backward_stretch<T, kCanStream>(gate + head, up + head, grad + head,
                                    grad_gate ? grad_gate + head : nullptr,
                                    grad_up ? grad_up + head : nullptr, n - head);
    stream_fence();
  });
}

}  // namespace

void swiglu_forward(const SwigluArgs& a) {
  switch (a.gate.dtype) {
    case DType::f64:
      return forward_as<double>(a);
    case DType::f32:
      return forward_as<float>(a);
    case DType::bf16:
      return forward_as<bf16>(a);
    case DType::f16:
      return forward_as<f16>(a);
  }
}

void swiglu_backward(const SwigluArgs& a) {
  switch (a.gate.dtype) {
    case DType::f64:
      return backward_as<double>(a);
    case DType::f32:
      return backward_as<float>(a);
    case DType::bf16:
      return backward_as<bf16>(a);
    case DType::f16:
      return backward_as<f16>(a);
  }
}

}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
