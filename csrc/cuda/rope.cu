// Rotary position embedding, queries and keys in one pass: a' = a cos - b sin, b' = b cos + a sin.
#include "cuda/device.h"
#include "cuda/rope.h"
#include "cuda/rope_plan.h"

namespace llama_fast {
namespace cuda {
namespace {

// Rotates W pairs of a head: from two chunks half a head apart, or interleaved in two adjacent
// chunks.
template <class T, int W>
LF_DEVICE void rotate(const T* in, T* out, int64_t pairs, int64_t at, bool interleaved,
                      const float (&c)[W], const float (&s)[W]) {
  float a[W], b[W];
  if (interleaved) {
    float low[W], high[W];
    load_numbers(in + 2 * at, low);
    load_numbers(in + 2 * at + W, high);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      a[j] = 2 * j < W ? low[2 * j % W] : high[2 * j % W];
      b[j] = 2 * j + 1 < W ? low[(2 * j + 1) % W] : high[(2 * j + 1) % W];
    }
  } else {
    load_numbers(in + at, a);
    load_numbers(in + pairs + at, b);
  }
  float x[W], y[W];
#pragma unroll
  for (int j = 0; j < W; ++j) {
    // fmaf fixes which product is rounded, so that both layouts give the same bits.
    x[j] = fmaf(a[j], c[j], -(b[j] * s[j]));
    y[j] = fmaf(b[j], c[j], a[j] * s[j]);
  }
  if (interleaved) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float half[W];
#pragma unroll
      for (int j = 0; j < W; ++j) {
        const int k = i * W + j;
        half[j] = k % 2 ? y[k / 2] : x[k / 2];
      }
      store_numbers(out + 2 * at + i * W, half);
    }
  } else {
    store_numbers(out + at, x);
    store_numbers(out + pairs + at, y);
  }
}

template <class T, int W>
LF_KERNEL(256)
rotate_heads(RopeArgs a, int chunks) {
  const int per_block = 256 / chunks;
  const int64_t place = block_x() * per_block + thread() / chunks;
  if (thread() >= per_block * chunks || place >= a.batch * a.positions) return;
  const int64_t batch = place / a.positions, position = place % a.positions;
  const int64_t q_groups = (a.q.heads + kRopeHeads - 1) / kRopeHeads;
  const bool is_q = block_y() < q_groups;
  const RopeHeads& h = is_q ? a.q : a.k;
  const int64_t head = (is_q ? block_y() : block_y() - q_groups) * kRopeHeads;
  const T* in = static_cast<const T*>(h.in) + batch * h.in_strides[0] + head * h.in_strides[1] +
                position * h.in_strides[2];
  T* out = static_cast<T*>(h.out) + batch * h.out_strides[0] + head * h.out_strides[1] +
           position * h.out_strides[2];
  const auto* cos =
      static_cast<const float*>(a.cos) + batch * a.cos_strides[0] + position * a.cos_strides[1];
  const auto* sin =
      static_cast<const float*>(a.sin) + batch * a.sin_strides[0] + position * a.sin_strides[1];
  for (int64_t at = thread() % chunks * W; at < a.pairs; at += chunks * W) {
    float c[W], s[W];
    load_numbers(cos + at, c);
    load_numbers(sin + at, s);
#pragma unroll
    for (int j = 0; j < W; ++j) s[j] = a.inverse ? -s[j] : s[j];
#pragma unroll
    for (int i = 0; i < kRopeHeads; ++i)
      if (head + i < h.heads)
        rotate<T, W>(in + i * h.in_strides[1], out + i * h.out_strides[1], a.pairs, at,
                     a.interleaved, c, s);
  }
}

bool aligned(const void* p, const int64_t* strides, int count, int64_t size) {
  bool fits = reinterpret_cast<uintptr_t>(p) % 16 == 0;
  for (int d = 0; d < count; ++d) fits = fits && strides[d] * size % 16 == 0;
  return fits;
}

template <class T, int W>
void rope_as(const Queue& queue, const RopeArgs& a) {
  const RopePlan plan =
      rope_plan(ceil_div(a.pairs, W), a.batch * a.positions, a.q.heads, a.k.heads);
  launch(queue, {"rope", {plan.blocks, plan.groups, 1}, 256, 1, 0}, rotate_heads<T, W>, a,
         plan.chunks);
}

template <class T>
void rope_as(const Queue& queue, const RopeArgs& a) {
  bool fits = a.pairs % kPerChunk<T> == 0 && aligned(a.cos, a.cos_strides, 2, 4) &&
              aligned(a.sin, a.sin_strides, 2, 4);
  for (const RopeHeads* h : {&a.q, &a.k})
    fits = fits && aligned(h->in, h->in_strides, 3, sizeof(T)) &&
           aligned(h->out, h->out_strides, 3, sizeof(T));
  fits ? rope_as<T, kPerChunk<T>>(queue, a) : rope_as<T, 1>(queue, a);
}

}  // namespace

void rope(const Queue& queue, const RopeArgs& a) {
  if (a.batch * a.positions * a.pairs * (a.q.heads + a.k.heads) == 0) return;
  switch (a.dtype) {
    case DType::f32:
      return rope_as<float>(queue, a);
    case DType::bf16:
      return rope_as<bf16>(queue, a);
    default:
      return rope_as<f16>(queue, a);
  }
}

}  // namespace cuda
}  // namespace llama_fast
