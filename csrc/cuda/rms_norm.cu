// RMSNorm, with the residual addition before it: y = x / sqrt(mean(x^2) + eps) * (offset + weight),
// x = input + residual. A row is read once: it stays in the registers of its threads.
#include "cuda/device.h"
#include "cuda/rms_norm.h"
#include "cuda/rms_norm_plan.h"

namespace llama_fast {
namespace cuda {
namespace {

// Numbers that a thread keeps, in chunks of W.
template <int W>
constexpr int kKept = 32 / W;

// Sum over the threads of a row, in all of them. Every thread of the block takes part.
LF_DEVICE float row_sum(float value, int group) {
  value = warp_sum(value, group < 32 ? group : 32);
  if (group <= 32) return value;
  auto* sums = reinterpret_cast<float*>(shared_memory());
  sync_block();  // the sums of the row before have been read
  if (lane() == 0) sums[warp()] = value;
  sync_block();
  const int first = thread() / group * group / 32;
  float total = 0;
  for (int i = 0; i < group / 32; ++i) total += sums[first + i];
  return total;
}

// T: input and y, X: residual and x. W elements are taken at once.
template <class T, class X, int W>
LF_KERNEL(512)
forward(RmsNormArgs a, int group) {
  const int64_t row = block_x() * (threads() / group) + thread() / group;
  const bool there = row < a.rows;
  const int64_t first = static_cast<int64_t>(thread() % group) * W,
                step = static_cast<int64_t>(group) * W;
  const int64_t end = there ? a.features : 0;
  const T* input = static_cast<const T*>(a.input.data);
  const X* residual = static_cast<const X*>(a.residual.data);
  T* y = static_cast<T*>(a.y.data);
  X* x = static_cast<X*>(a.x.data);
  if (there) {
    input += row_offset(a.shape, a.input, row);
    y += row_offset(a.shape, a.y, row);
    if (residual) {
      residual += row_offset(a.shape, a.residual, row);
      x += row_offset(a.shape, a.x, row);
    }
  }

  float kept[kKept<W>][W];
  float squares = 0;
  const auto take = [&](int64_t at, float (&v)[W]) {
    load_numbers(input + at, v);
    if (residual) {
      float added[W];
      load_numbers(residual + at, added);
#pragma unroll
      for (int j = 0; j < W; ++j) v[j] = widen(narrow<X>(v[j] + added[j]));
      store_numbers(x + at, v);
    }
#pragma unroll
    for (int j = 0; j < W; ++j) squares += v[j] * v[j];
  };
#pragma unroll
  for (int i = 0; i < kKept<W>; ++i)
    if (first + i * step < end) take(first + i * step, kept[i]);
  const int64_t rest = first + kKept<W> * step;
  for (int64_t at = rest; at < end; at += step) {
    float v[W];
    take(at, v);
  }

  const float r = 1.0f / sqrtf(row_sum(squares, group) / static_cast<float>(a.features) +
                               static_cast<float>(a.eps));
  const auto offset = static_cast<float>(a.offset);
  const auto give = [&](int64_t at, const float (&v)[W]) {
    float w[W], out[W];
    load_numbers(a.weight, a.weight_dtype, at, w);
#pragma unroll
    for (int j = 0; j < W; ++j) out[j] = v[j] * r * (offset + w[j]);
    store_numbers(y + at, out);
  };
#pragma unroll
  for (int i = 0; i < kKept<W>; ++i)
    if (first + i * step < end) give(first + i * step, kept[i]);
  for (int64_t at = rest; at < end; at += step) {
    float v[W];
    if (residual) {
      load_numbers(static_cast<const X*>(x) + at, v);  // what this thread stored
    } else {
      load_numbers(input + at, v);
    }
    give(at, v);
  }
  if (there && first == 0) static_cast<float*>(a.rstd)[row] = r;
}

// Whether the rows of a tensor can be accessed W elements at a time.
bool aligned(const RowShape& shape, const Rows& rows, int64_t W) {
  if (rows.data == nullptr) return true;
  const int64_t size = element_size(rows.dtype), step = W * size < 16 ? W * size : 16;
  bool fits = reinterpret_cast<uintptr_t>(rows.data) % static_cast<uintptr_t>(step) == 0;
  for (int d = 0; d < shape.dims; ++d) fits = fits && rows.strides[d] * size % step == 0;
  return fits;
}

bool aligned(const RmsNormArgs& a, int64_t W) {
  bool fits = a.features % W == 0 && reinterpret_cast<uintptr_t>(a.weight) % 16 == 0;
  for (const Rows* rows : {&a.input, &a.residual, &a.x, &a.y, &a.grad_y, &a.grad_x, &a.dx})
    fits = fits && aligned(a.shape, *rows, W);
  return fits;
}

template <class T, class X, int W>
void forward_as(const Queue& queue, const RmsNormArgs& a) {
  const RmsNormPlan plan = rms_norm_plan(divide_up(a.features, W), kKept<W>);
  const int threads = plan.group * plan.rows;
  const Launch how{"rms_norm", {divide_up(a.rows, plan.rows), 1, 1}, threads, 1, threads / 32 * 4};
  launch(queue, how, forward<T, X, W>, a, plan.group);
}

template <class T, class X>
void forward_as(const Queue& queue, const RmsNormArgs& a) {
  aligned(a, kPerChunk<T>) ? forward_as<T, X, kPerChunk<T>>(queue, a)
                           : forward_as<T, X, 1>(queue, a);
}

}  // namespace

void rms_norm_forward(const Queue& queue, const RmsNormArgs& a) {
  const bool wide = a.residual.data && a.x.dtype == DType::f32;
  switch (a.input.dtype) {
    case DType::f32:
      return forward_as<float, float>(queue, a);
    case DType::bf16:
      return wide ? forward_as<bf16, float>(queue, a) : forward_as<bf16, bf16>(queue, a);
    default:
      return wide ? forward_as<f16, float>(queue, a) : forward_as<f16, f16>(queue, a);
  }
}

}  // namespace cuda
}  // namespace llama_fast
