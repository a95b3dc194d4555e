// RMSNorm, with an optional residual addition: y = x / sqrt(mean(x^2) + eps) * (offset + weight),
// x = input + residual. A row is read once: it stays in the registers of its threads.
#include <type_traits>

#include "cuda/device.h"
#include "cuda/rms_norm.h"
#include "cuda/rms_norm_plan.h"

namespace llama_fast {
namespace cuda {
namespace {

constexpr int64_t kSumsBytes = 64;  // of shared memory: a sum for each of 16 warps

// How many chunks of W numbers a thread keeps.
template <int W>
constexpr int kKept = W == 1 ? 8 : 32 / W;

// Sum over the threads of a row, returned to all of them. Every thread of the block must call it.
LF_DEVICE float row_sum(float value, int group) {
  value = warp_sum(value, group < 32 ? group : 32);
  if (group <= 32) return value;
  auto* sums = reinterpret_cast<float*>(shared_memory());
  sync_block();  // all threads have read the sums of the previous row
  if (lane() == 0) sums[warp()] = value;
  sync_block();
  const int first = thread() / group * group / 32;
  float total = 0;
  for (int i = 0; i < group / 32; ++i) total += sums[first + i];
  return total;
}

// T: input and y, X: residual and x. W elements are accessed at once.
template <class T, class X, int W>
LF_KERNEL(512)
forward(RmsNormArgs a, int group) {
  const int64_t row = block_x() * (threads() / group) + thread() / group;
  const bool in_range = row < a.rows;
  const int64_t first = static_cast<int64_t>(thread() % group) * W,
                step = static_cast<int64_t>(group) * W;
  const int64_t end = in_range ? a.features : 0;
  const T* input = static_cast<const T*>(a.input.data);
  const X* residual = static_cast<const X*>(a.residual.data);
  T* y = static_cast<T*>(a.y.data);
  X* x = static_cast<X*>(a.x.data);
  if (in_range) {
    input += row_offset(a.shape, a.input, row);
    y += row_offset(a.shape, a.y, row);
    if (residual) {
      residual += row_offset(a.shape, a.residual, row);
      x += row_offset(a.shape, a.x, row);
    }
  }

  float kept[kKept<W>][W];
  float squares = 0;
  const auto load = [&](int64_t at, float (&v)[W]) {
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
    if (first + i * step < end) load(first + i * step, kept[i]);
  const int64_t rest = first + kKept<W> * step;
  for (int64_t at = rest; at < end; at += step) {
    float v[W];
    load(at, v);
  }

  const float r = 1.0f / sqrtf(row_sum(squares, group) / static_cast<float>(a.features) +
                               static_cast<float>(a.eps));
  const auto offset = static_cast<float>(a.offset);
  const auto store = [&](int64_t at, const float (&v)[W]) {
    float w[W], out[W];
    load_numbers(a.weight, a.weight_dtype, at, w);
#pragma unroll
    for (int j = 0; j < W; ++j) out[j] = v[j] * r * (offset + w[j]);
    store_numbers(y + at, out);
  };
#pragma unroll
  for (int i = 0; i < kKept<W>; ++i)
    if (first + i * step < end) store(first + i * step, kept[i]);
  for (int64_t at = rest; at < end; at += step) {
    float v[W];
    if (residual) {
      load_numbers(static_cast<const X*>(x) + at, v);  // what this thread stored
    } else {
      load_numbers(input + at, v);
    }
    store(at, v);
  }
  if (in_range && first == 0) static_cast<float*>(a.rstd)[row] = r;
}

// --- backward --------------------------------------------------------------------------------

// T: grad_y, X: x, grad_x and dx. Blocks take rows in turns. `partial` (blocks, E), unless
// null, receives the sums of the weight gradients of their rows.
//   g = grad_y (offset + weight)    dx = r (g - x r mean(g x r)) + grad_x    dweight = grad_y x r
template <class T, class X, int W>
LF_KERNEL(512)
backward(RmsNormArgs a, int group, float* partial) {
  constexpr int kHeld = kKept<W> / 2;
  const int rows = threads() / group;
  const int64_t first = static_cast<int64_t>(thread() % group) * W;
  const int64_t step = static_cast<int64_t>(group) * W, rest = first + kHeld * step;
  const auto offset = static_cast<float>(a.offset);
  float sums[kHeld][W] = {};
  for (int64_t base = block_x() * rows; base < a.rows; base += blocks_x() * rows) {
    const int64_t row = base + thread() / group;
    const int64_t end = row < a.rows ? a.features : 0;
    const float r = end > 0 ? static_cast<const float*>(a.rstd)[row] : 0.0f;
    const T* grad_y = static_cast<const T*>(a.grad_y.data);
    const X* x = static_cast<const X*>(a.x.data);
    const X* grad_x = static_cast<const X*>(a.grad_x.data);
    X* dx = static_cast<X*>(a.dx.data);
    if (end > 0) {
      grad_y += row_offset(a.shape, a.grad_y, row);
      x += row_offset(a.shape, a.x, row);
      if (dx) dx += row_offset(a.shape, a.dx, row);
      if (grad_x) grad_x += row_offset(a.shape, a.grad_x, row);
    }

    float gradient[kHeld][W], normed[kHeld][W];
    float products = 0;
    const auto load = [&](int64_t at, float (&g)[W], float (&n)[W]) {
      load_numbers(grad_y + at, g);
      load_numbers(x + at, n);
#pragma unroll
      for (int j = 0; j < W; ++j) n[j] *= r;
    };
    const auto scale_by_weight = [&](int64_t at, float (&g)[W]) {
      float w[W];
      load_numbers(a.weight, a.weight_dtype, at, w);
#pragma unroll
      for (int j = 0; j < W; ++j) g[j] *= offset + w[j];
    };
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int64_t at = first + i * step;
      if (at >= end) continue;
      load(at, gradient[i], normed[i]);
#pragma unroll
      for (int j = 0; j < W; ++j) sums[i][j] += gradient[i][j] * normed[i][j];
      scale_by_weight(at, gradient[i]);
#pragma unroll
      for (int j = 0; j < W; ++j) products += gradient[i][j] * normed[i][j];
    }
    if (dx == nullptr) continue;
    for (int64_t at = rest; at < end; at += step) {
      float g[W], n[W];
      load(at, g, n);
      scale_by_weight(at, g);
#pragma unroll
      for (int j = 0; j < W; ++j) products += g[j] * n[j];
    }

    const float mean = row_sum(products, group) / static_cast<float>(a.features);
    const auto store = [&](int64_t at, const float (&g)[W], const float (&n)[W]) {
      float out[W], more[W] = {};
      if (grad_x) load_numbers(grad_x + at, more);  // added last and unfused, as torch does
#pragma unroll
      for (int j = 0; j < W; ++j) out[j] = multiply(r, g[j] - n[j] * mean) + more[j];
      store_numbers(dx + at, out);
    };
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      if (first + i * step < end) store(first + i * step, gradient[i], normed[i]);
    for (int64_t at = rest; at < end; at += step) {
      float g[W], n[W];
      load(at, g, n);
      scale_by_weight(at, g);
      store(at, g, n);
    }
  }
  if (partial == nullptr) return;

  // Adds the rows that the block handles at the same time, in a fixed order.
  auto* all = reinterpret_cast<float*>(shared_memory() + kSumsBytes);
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
#pragma unroll
    for (int j = 0; j < W; ++j)
      if (const int64_t at = first + i * step + j; at < a.features)
        all[thread() / group * a.features + at] = sums[i][j];
  sync_block();
  for (int64_t c = thread(); c < a.features; c += threads()) {
    float sum = 0;
    for (int i = 0; i < rows; ++i) sum += all[i * a.features + c];
    partial[block_x() * a.features + c] = sum;
  }
}

// Sums of dweight over some rows for a strip of columns, where rows are too long for registers.
template <class T, class X, int W>
LF_KERNEL(256)
weight_sums(RmsNormArgs a, float* partial) {
  const int64_t at = (block_y() * 32 + lane()) * W;
  float sums[W] = {};
  for (int64_t row = block_x() * 8 + warp(); row < a.rows; row += blocks_x() * 8) {
    if (at >= a.features) break;
    const float r = static_cast<const float*>(a.rstd)[row];
    float g[W], n[W];
    load_numbers(static_cast<const T*>(a.grad_y.data) + row_offset(a.shape, a.grad_y, row) + at, g);
    load_numbers(static_cast<const X*>(a.x.data) + row_offset(a.shape, a.x, row) + at, n);
#pragma unroll
    for (int j = 0; j < W; ++j) sums[j] += g[j] * (n[j] * r);
  }
  auto* all = reinterpret_cast<float*>(shared_memory());
#pragma unroll
  for (int j = 0; j < W; ++j) all[warp() * 32 * W + lane() * W + j] = sums[j];
  sync_block();
  for (int c = thread(); c < 32 * W; c += threads()) {
    const int64_t column = block_y() * 32 * W + c;
    if (column >= a.features) break;
    float sum = 0;
    for (int i = 0; i < 8; ++i) sum += all[i * 32 * W + c];
    partial[block_x() * a.features + column] = sum;
  }
}

// dweight from the sums of all blocks: 32 columns a block; each warp adds every eighth part.
LF_KERNEL(256) add_parts(RmsNormArgs a, DType type, const float* partial, int64_t parts) {
  const int64_t column = block_x() * 32 + lane();
  float sum = 0;
  if (column < a.features)
    for (int64_t i = warp(); i < parts; i += 8) sum += partial[i * a.features + column];
  auto* all = reinterpret_cast<float*>(shared_memory());
  all[thread()] = sum;
  sync_block();
  if (warp() > 0 || column >= a.features) return;
  sum = 0;
  for (int i = 0; i < 8; ++i) sum += all[i * 32 + lane()];
  switch (type) {
    case DType::f64:
      static_cast<double*>(a.dweight)[column] = sum;
      break;
    case DType::f32:
      static_cast<float*>(a.dweight)[column] = sum;
      break;
    case DType::bf16:
      static_cast<bf16*>(a.dweight)[column] = narrow<bf16>(sum);
      break;
    case DType::f16:
      static_cast<f16*>(a.dweight)[column] = narrow<f16>(sum);
      break;
  }
}

// --- launches --------------------------------------------------------------------------------

// Whether the rows of a tensor can be accessed W elements at a time.
bool aligned(const RowShape& shape, const RowTensor& rows, int64_t W) {
  if (rows.data == nullptr) return true;
  const int64_t size = element_size(rows.dtype), step = W * size < 16 ? W * size : 16;
  bool fits = reinterpret_cast<uintptr_t>(rows.data) % static_cast<uintptr_t>(step) == 0;
  for (int d = 0; d < shape.dims; ++d) fits = fits && rows.strides[d] * size % step == 0;
  return fits;
}

bool aligned(const RmsNormArgs& a, int64_t W) {
  bool fits = a.features % W == 0 && reinterpret_cast<uintptr_t>(a.weight) % 16 == 0;
  for (const RowTensor* rows : {&a.input, &a.residual, &a.x, &a.y, &a.grad_y, &a.grad_x, &a.dx})
    fits = fits && aligned(a.shape, *rows, W);
  return fits;
}

template <class T, class X, int W>
void forward_as(const Queue& queue, const RmsNormArgs& a) {
  const RmsNormPlan plan = rms_norm_plan(ceil_div(a.features, W), kKept<W>);
  const int threads = plan.group * plan.rows;
  const Launch how{"rms_norm", {ceil_div(a.rows, plan.rows), 1, 1}, threads, 1, kSumsBytes};
  launch(queue, how, forward<T, X, W>, a, plan.group);
}

template <int W>
RmsNormPlan backward_plan(const RmsNormArgs& a) {
  return rms_norm_plan(ceil_div(a.features, W), kKept<W> / 2);
}

template <class T, class X, int W>
void backward_as(const Queue& queue, const RmsNormArgs& a, float* partial) {
  const RmsNormPlan plan = backward_plan<W>(a);
  // Whether the sums of a row's weight gradients stay in registers.
  const bool whole = a.features <= static_cast<int64_t>(plan.group) * W * (kKept<W> / 2);
  const int64_t blocks = rms_norm_blocks(gpu_of(queue), a.rows, plan);
  if (a.dx.data || whole) {
    const bool sums = a.dweight && whole;
    const int64_t shared = kSumsBytes + (sums ? plan.rows * a.features * 4 : 0);
    const Launch how{"rms_norm_backward", {blocks, 1, 1}, plan.group * plan.rows, 1, shared};
    launch(queue, how, backward<T, X, W>, a, plan.group, sums ? partial : nullptr);
  }
  if (a.dweight && !whole) {
    const Launch how{
        "rms_norm_weight_sums", {blocks, ceil_div(a.features, 32 * W), 1}, 256, 1, 8 * 32 * W * 4};
    launch(queue, how, weight_sums<T, X, W>, a, partial);
  }
}

// f(T, X, W) with the template arguments of the kernel for these arguments.
template <class F>
void with_types(const RmsNormArgs& a, DType type, bool wide, const F& f) {
  const auto with_width = [&](auto t, auto x) {
    // The width of the wider type: the sums are then the same for 16-bit input beside a float x.
    using X = decltype(x);
    aligned(a, kPerChunk<X>) ? f(t, x, std::integral_constant<int, kPerChunk<X>>())
                             : f(t, x, std::integral_constant<int, 1>());
  };
  if (type == DType::f32) return with_width(float(), float());
  if (type == DType::bf16) return wide ? with_width(bf16(), float()) : with_width(bf16(), bf16());
  wide ? with_width(f16(), float()) : with_width(f16(), f16());
}

}  // namespace

void rms_norm_forward(const Queue& queue, const RmsNormArgs& a) {
  const bool wide = a.residual.data && a.x.dtype == DType::f32;
  with_types(a, a.input.dtype, wide, [&](auto t, auto x, auto width) {
    forward_as<decltype(t), decltype(x), decltype(width)::value>(queue, a);
  });
}

int64_t rms_norm_parts(const Queue& queue, const RmsNormArgs& a) {
  int64_t parts = 0;
  with_types(a, a.grad_y.dtype, a.x.dtype == DType::f32, [&](auto, auto, auto width) {
    parts = rms_norm_blocks(gpu_of(queue), a.rows, backward_plan<decltype(width)::value>(a));
  });
  return parts;
}

void rms_norm_backward(const Queue& queue, const RmsNormArgs& a, DType dweight_dtype,
                       float* partial) {
  with_types(a, a.grad_y.dtype, a.x.dtype == DType::f32, [&](auto t, auto x, auto width) {
    backward_as<decltype(t), decltype(x), decltype(width)::value>(queue, a, partial);
  });
  if (!a.dweight) return;
  const Launch how{"rms_norm_add_parts", {ceil_div(a.features, 32), 1, 1}, 256, 1, 256 * 4};
  launch(queue, how, add_parts, a, dweight_dtype, static_cast<const float*>(partial),
         rms_norm_parts(queue, a));
}

}  // namespace cuda
}  // namespace llama_fast
