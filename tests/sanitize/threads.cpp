// Every kernel on several threads, called from two threads at once, for ThreadSanitizer. It does
// not know the OpenMP runtime that torch's thread pool uses, so threads are made here; all else is
// the library's own. Results have to be those of one thread, to the last bit.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "glue/memory.h"
#include "glue/output_cache.h"

namespace {
thread_local int threads = 1;
}

namespace llama_fast {

int num_threads() { return threads; }

// As torch's: a piece for each thread, the first for the one that called.
void run_parallel(int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  const int64_t pieces = std::min<int64_t>(threads, (n + grain - 1) / std::max<int64_t>(grain, 1));
  const int64_t size = (n + pieces - 1) / std::max<int64_t>(pieces, 1);
  const auto piece = [=](int64_t p) {
    const ScratchInUse in_use;
    const int64_t begin = p * size, end = std::min(n, begin + size);
    if (begin < end) body(begin, end, context);
  };
  std::vector<std::thread> others;
  for (int64_t p = 1; p < pieces; ++p) others.emplace_back(piece, p);
  piece(0);
  for (std::thread& t : others) t.join();
}

}  // namespace llama_fast

namespace {

using namespace llama_fast;

using Bytes = std::vector<char>;

// Numbers of one dtype. `values` are normally distributed.
struct Numbers {
  Bytes bytes;
  DType dtype;

  Numbers(DType type, int64_t n, int seed = -1)
      : bytes(size_t(n * element_size(type))), dtype(type) {
    if (seed < 0) return;
    std::mt19937 generator(static_cast<unsigned>(seed));
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < n; ++i) {
      const float value = normal(generator);
      if (type == DType::f32) std::memcpy(&bytes[size_t(i) * 4], &value, 4);
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      const auto high = static_cast<uint16_t>(bits >> 16);
      if (type == DType::bf16) std::memcpy(&bytes[size_t(i) * 2], &high, 2);
    }
  }
  char* data() { return bytes.data(); }
};

// What a call wrote, tensor after tensor.
using Written = std::vector<Bytes>;

Tensor4 tensor4(Numbers& t, int64_t heads, int64_t rows, int64_t columns) {
  return {t.data(), heads * rows * columns, rows * columns, columns, 1};
}

Written attention(DType dtype, int64_t queries) {
  const int64_t B = 2, H = 4, K = 2, T = 700, D = 32, rows = B * H * queries;
  Numbers q(dtype, rows * D, 1), k(dtype, B * K * T * D, 2), v(dtype, B * K * T * D, 3);
  Numbers grad(dtype, rows * D, 4), out(dtype, rows * D);
  Numbers lse(DType::f32, rows), low(DType::f32, rows), delta(DType::f32, rows);
  Numbers dq(dtype, rows * D), dk(dtype, B * K * T * D), dv(dtype, B * K * T * D);
  AttentionArgs a{};
  a.dtype = dtype;
  a.batch = B, a.heads = H, a.kv_heads = K, a.queries = queries, a.keys = T;
  a.head_size = a.value_size = D;
  a.q = tensor4(q, H, queries, D), a.k = tensor4(k, K, T, D), a.v = tensor4(v, K, T, D);
  a.out = tensor4(out, H, queries, D);
  a.lse = tensor4(lse, H, queries, 1), a.lse_low = tensor4(low, H, queries, 1);
  a.causal = true;
  a.window_left = a.window_right = -1;
  a.scale = 0.2;
  kernels().attention_forward(a);
  a.delta = tensor4(delta, H, queries, 1);
  a.grad_out = tensor4(grad, H, queries, D), a.grad_q = tensor4(dq, H, queries, D);
  a.grad_k = tensor4(dk, K, T, D), a.grad_v = tensor4(dv, K, T, D);
  kernels().attention_backward(a);
  return {out.bytes, lse.bytes, dq.bytes, dk.bytes, dv.bytes};
}

std::vector<int64_t> targets(int64_t n, int64_t classes) {
  std::vector<int64_t> target;
  for (int64_t i = 0; i < n; ++i) target.push_back(i % 7 == 3 ? -100 : i * 31 % classes);
  return target;
}

Written cross_entropy(DType dtype) {
  const int64_t N = 300, V = 700, strides[] = {V};
  Numbers x(dtype, N * V, 1), dx(dtype, N * V), loss(DType::f32, 1), z_loss(DType::f32, 1);
  Numbers lse(DType::f64, N);
  const std::vector<int64_t> target = targets(N, V);
  CrossEntropyArgs a{};
  a.tokens = N, a.classes = V, a.token_dims = 1, a.token_sizes = &N;
  a.input = {x.data(), dtype, 1, strides};
  a.target = target.data();
  a.ignore_index = -100;
  a.reduction = Reduction::mean;
  a.z_loss = 1e-3;
  a.loss = loss.data(), a.z_loss_out = z_loss.data();
  a.lse = reinterpret_cast<double*>(lse.data());
  kernels().cross_entropy_forward(a);
  Written written{loss.bytes, lse.bytes};
  const float one = 1;
  a.grad_loss = &one;
  a.grad = {dx.data(), dtype, 1, strides};
  kernels().cross_entropy_backward(a);
  a.grad_loss = nullptr;
  a.grad = a.input;
  kernels().cross_entropy_fused(a);
  written.insert(written.end(), {dx.bytes, x.bytes, loss.bytes});
  return written;
}

Written linear_cross_entropy(DType dtype) {
  const int64_t N = 500, E = 40, V = 1500;
  Numbers x(dtype, N * E, 1), w(dtype, V * E, 2), dx(dtype, N * E), dw(dtype, V * E);
  Numbers db(DType::f32, V), bias(DType::f32, V, 3), loss(DType::f32, 1), z_loss(DType::f32, 1);
  Numbers lse(DType::f32, N);
  const std::vector<int64_t> target = targets(N, V);
  LinearCrossEntropyArgs a{};
  a.tokens = N, a.features = E, a.classes = V, a.dtype = dtype;
  a.input = x.data(), a.input_stride = E, a.linear_weight = w.data(), a.linear_weight_stride = E;
  a.target = target.data();
  a.linear_bias = bias.data();
  a.ignore_index = -100;
  a.reduction = Reduction::mean;
  a.label_smoothing = 0.1, a.softcap = 20;
  a.loss = loss.data(), a.z_loss_out = z_loss.data(), a.lse = lse.data();
  a.grad_input = dx.data(), a.grad_linear_weight = dw.data(), a.grad_linear_bias = db.data();
  kernels().linear_cross_entropy(a);
  return {loss.bytes, lse.bytes, dx.bytes, dw.bytes, db.bytes};
}

RowTensor rows_of(Numbers& t, int64_t columns) { return {t.data(), t.dtype, {columns}}; }

Written rms_norm(DType dtype) {
  const int64_t N = 3000, E = 70;
  Numbers x(dtype, N * E, 1), w(dtype, E, 2), y(dtype, N * E), grad(dtype, N * E, 3);
  Numbers dx(dtype, N * E), dw(dtype, E), rstd(DType::f32, N);
  RmsNormArgs a{};
  a.shape.dims = 1, a.shape.sizes[0] = N;
  a.rows = N, a.features = E, a.eps = 1e-6;
  a.weight = w.data(), a.weight_dtype = dtype, a.rstd = rstd.data();
  a.input = a.x = rows_of(x, E), a.y = rows_of(y, E);
  kernels().rms_norm_forward(a);
  a.grad_y = rows_of(grad, E), a.dx = rows_of(dx, E), a.dweight = dw.data();
  kernels().rms_norm_backward(a);
  return {y.bytes, dx.bytes, dw.bytes};
}

Written swiglu(DType dtype) {
  const int64_t N = 700, E = 150;
  Numbers gate(dtype, N * E, 1), up(dtype, N * E, 2), out(dtype, N * E), grad(dtype, N * E, 3);
  Numbers dgate(dtype, N * E), dup(dtype, N * E);
  SwigluArgs a{};
  a.shape.dims = 1, a.shape.sizes[0] = N;
  a.rows = N, a.columns = E;
  a.gate = rows_of(gate, E), a.up = rows_of(up, E), a.out = rows_of(out, E);
  kernels().swiglu_forward(a);
  a.grad_out = rows_of(grad, E), a.grad_gate = rows_of(dgate, E), a.grad_up = rows_of(dup, E);
  kernels().swiglu_backward(a);
  return {out.bytes, dgate.bytes, dup.bytes};
}

Written rope(DType dtype) {
  const int64_t B = 2, H = 6, S = 300, D = 32, n = B * H * S * D;
  Numbers q(dtype, n, 1), k(dtype, n, 2), q_out(dtype, n), k_out(dtype, n);
  Numbers cos(DType::f32, S * D / 2, 3), sin(DType::f32, S * D / 2, 4);
  const auto heads = [&](Numbers& in, Numbers& out) {
    return RopeHeads{H, in.data(), out.data(), {H * S * D, S * D, D}, {H * S * D, S * D, D}};
  };
  RopeArgs a{};
  a.dtype = dtype, a.batch = B, a.positions = S, a.pairs = D / 2;
  a.q = heads(q, q_out), a.k = heads(k, k_out);
  a.cos = cos.data(), a.sin = sin.data();
  a.cos_strides[1] = a.sin_strides[1] = D / 2;
  kernels().rope(a);
  return {q_out.bytes, k_out.bytes};
}

Written linear(DType dtype) {
  const int64_t R = 3, I = 300, O = 2000;
  Numbers x(dtype, R * I, 1), w(dtype, O * I, 2), out(dtype, R * O);
  LinearArgs a{};
  a.dtype = dtype, a.rows = R, a.inner = I, a.input = x.data();
  a.weights[0] = {w.data(), I, O};
  a.count = 1;
  a.out = out.data();
  kernels().linear(a);
  return {out.bytes};
}

Written everything() {
  const ScratchInUse in_use;
  Written all;
  const auto add = [&](Written written) { all.insert(all.end(), written.begin(), written.end()); };
  for (DType dtype : {DType::f32, DType::bf16}) {
    add(attention(dtype, 200));
    add(attention(dtype, 2));
    add(cross_entropy(dtype));
    add(linear_cross_entropy(dtype));
    add(rms_norm(dtype));
    add(swiglu(dtype));
    add(rope(dtype));
    add(linear(dtype));
  }
  return all;
}

}  // namespace

int main() {
  try {
    std::printf("%s\n", kernels().isa);
  } catch (const std::exception& error) {
    std::printf("left out: %s\n", error.what());
    return 0;
  }
  const Written expected = everything();
  std::atomic<bool> done{false};
  std::atomic<int> wrong{0};
  // Meanwhile outputs come from the cache and go back, and both kinds of idle memory are freed.
  std::thread cleaner([&] {
    while (!done) {
      const OutputMemory memory = take_output_memory(size_t{5} << 20);
      if (memory.data != nullptr) return_output_memory(memory);
      free_idle_memory();
      std::this_thread::yield();
    }
  });
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 2; ++caller)
    callers.emplace_back([&, caller] {
      threads = 3 + caller;
      for (int run = 0; run < 2; ++run)
        if (everything() != expected) ++wrong;
    });
  for (std::thread& t : callers) t.join();
  done = true;
  cleaner.join();
  if (wrong > 0) std::printf("%d runs differ from those of one thread\n", wrong.load());
  return wrong > 0;
}
