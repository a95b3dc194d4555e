// Softmax cross-entropy, forward, backward, and both at once in place: finds the rows, shares them
// among threads and reduces their losses. The mathematics of one row is in cross_entropy_row.h.
#include "cpu/cross_entropy.h"

#include <type_traits>
#include <vector>

#include "cpu/cross_entropy_fused.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

enum class Pass { forward, backward, fused };

constexpr int64_t kItemElements = 1 << 18;  // logits that a thread takes at a time
constexpr int64_t kTileRows = 16;           // rows gathered together when classes are strided
constexpr int64_t kTileBytes = 2 << 20;
constexpr int64_t kStreamBytes = 16 << 20;  // larger gradients would not fit a cache

int64_t offset_of(const CrossEntropyArgs& a, const TokenRows& rows, int64_t token) {
  int64_t offset = 0;
  for (int64_t d = a.token_dims - 1; d > 0; --d) {
    offset += token % a.token_sizes[d] * rows.token_strides[d];
    token /= a.token_sizes[d];
  }
  return a.token_dims > 0 ? offset + token * rows.token_strides[0] : 0;
}

bool is_contiguous(const CrossEntropyArgs& a, const TokenRows& rows) {
  return rows.class_stride == 1 || a.classes <= 1;
}

// Copies the rows of `count` tokens into consecutive rows of `out`. Element by element in the
// outer loop, because neighbouring tokens share cache lines when classes are strided.
template <class T, class A>
void gather(const TokenRows& rows, const int64_t* offsets, int64_t count, int64_t classes, A* out) {
  const T* data = static_cast<const T*>(rows.data);
  for (int64_t c = 0; c < classes; ++c)
    for (int64_t i = 0; i < count; ++i) {
      const T* from = data + offsets[i] + c * rows.class_stride;
      if constexpr (std::is_same_v<T, A>) {
        out[i * classes + c] = *from;
      } else {
        out[i * classes + c] = static_cast<A>(load_one(from));
      }
    }
}

template <class T>
void scatter(const TokenRows& rows, const int64_t* offsets, int64_t count, int64_t classes,
             const T* from) {
  T* data = static_cast<T*>(rows.data);
  for (int64_t c = 0; c < classes; ++c)
    for (int64_t i = 0; i < count; ++i)
      data[offsets[i] + c * rows.class_stride] = from[i * classes + c];
}

// A row of probabilities of any type, in the accumulation type. Writes whole vectors.
template <class P, class A>
void read_row_as(const TokenRows& rows, int64_t offset, int64_t classes, A* out) {
  if constexpr (std::is_same_v<acc_t<P>, A>) {
    if (rows.class_stride == 1) {
      const P* from = static_cast<const P*>(rows.data) + offset;
      for_vectors(from, classes, A(0), [&](vec<A> v, int64_t c) { store(out + c, v); });
      return;
    }
  }
  gather<P>(rows, &offset, 1, classes, out);
}

template <class A>
void read_probabilities(const TokenRows& rows, int64_t offset, int64_t classes, A* out) {
  with_element_type(rows.dtype,
                    [&](auto p) { read_row_as<decltype(p)>(rows, offset, classes, out); });
}

// One forward, backward or fused call for logits of type T.
template <class T>
class CrossEntropy {
 public:
  using A = acc_t<T>;

  explicit CrossEntropy(const CrossEntropyArgs& args) : a_(args) {
    row_.classes = a_.classes;
    row_.weight = static_cast<const A*>(a_.weight);
    row_.smoothing = a_.label_smoothing;
    row_.softcap = a_.softcap;
    row_.z_loss = a_.z_loss;
    row_.weight_sum = static_cast<double>(a_.classes);
    if (row_.weight && row_.smoothing > 0)
      row_.weight_sum = pairwise_sum(0, a_.classes, [&](int64_t c) { return row_.weight[c]; });
    const int64_t bytes = a_.tokens * a_.classes * static_cast<int64_t>(sizeof(T));
    row_.stream = a_.grad.data != a_.input.data && bytes >= kStreamBytes;
    count_targets();
  }

  // The first token whose target is no class, or -1.
  int64_t bad_token() const { return bad_token_; }

  void forward(bool fused) {
    std::vector<double> losses(static_cast<size_t>(a_.tokens)), z_losses(losses.size());
    losses_ = losses.data();
    z_losses_ = z_losses.data();
    fused ? run<Pass::fused>() : run<Pass::forward>();
    reduce();
  }

  void backward() { run<Pass::backward>(); }

 private:
  void count_targets() {
    double kept = 0;
    for (int64_t n = 0; n < a_.tokens && a_.target; ++n) {
      if (ignored(n)) continue;
      if (a_.target[n] < 0 || a_.target[n] >= a_.classes) {
        bad_token_ = n;
        return;
      }
      kept += 1;
    }
    if (a_.reduction != Reduction::mean) return;
    // Against probabilities torch averages over tokens, whatever their weights.
    denominator_ = z_denominator_ = a_.target ? kept : static_cast<double>(a_.tokens);
    if (a_.target && row_.weight)
      denominator_ = pairwise_sum(0, a_.tokens, [&](int64_t n) {
        return ignored(n) ? 0.0 : static_cast<double>(row_.weight[a_.target[n]]);
      });
  }

  bool ignored(int64_t n) const { return a_.target && a_.target[n] == a_.ignore_index; }

  template <Pass kPass>
  void run() {
    const bool gather_input = !is_contiguous(a_, a_.input);
    const bool scatter_grad = kPass != Pass::forward && !is_contiguous(a_, a_.grad);
    const int64_t row_bytes = a_.classes * static_cast<int64_t>(sizeof(T));
    int64_t tile = 1;
    if (gather_input || scatter_grad) {
      tile = max(1, min(kTileRows, kTileBytes / row_bytes));
    }
    int64_t per_item =
        min(kItemElements / max(1, a_.classes), a_.tokens / (int64_t{4} * num_threads()));
    per_item = max(tile, per_item / tile * tile);
    const int64_t items = ceil_div(a_.tokens, per_item);
    const int64_t threads = min(items, num_threads());

    std::atomic<int64_t> next{0};
    parallel_ranges(threads, 1, [&](int64_t begin, int64_t end) {
      T* rows = nullptr;
      A* q = nullptr;
      A* exponentials = nullptr;
      const auto carve = [&](Carver scratch) {
        if (!a_.target) q = scratch.take<A>(a_.classes + kLanes<A>);  // written by whole vectors
        if (gather_input || scatter_grad) rows = scratch.take<T>(tile * a_.classes);
        if (kPass == Pass::fused && sizeof(T) == 2) exponentials = scratch.take<A>(a_.classes);
        return scratch.used();
      };
      if (const size_t bytes = carve(Carver())) carve(Carver(thread_scratch(bytes)));
      for (; begin < end; ++begin)
        for (int64_t item = next++; item < items; item = next++) {
          const int64_t last = item + 1 == items ? a_.tokens : (item + 1) * per_item;
          for (int64_t n = item * per_item; n < last; n += tile)
            run_tile<kPass>(n, last - n < tile ? last - n : tile, gather_input ? rows : nullptr,
                            scatter_grad ? rows : nullptr, q, exponentials);
        }
      if (row_.stream) stream_fence();
    });
  }

  // Tokens [first, first + count). in: where to gather their logits, or null when each row is
  // contiguous as it is; out: likewise for the gradient.
  template <Pass kPass>
  void run_tile(int64_t first, int64_t count, T* in, T* out, A* q, A* exponentials) {
    int64_t in_offsets[kTileRows], out_offsets[kTileRows];
    for (int64_t i = 0; i < count; ++i) {
      in_offsets[i] = offset_of(a_, a_.input, first + i);
      if constexpr (kPass != Pass::forward) out_offsets[i] = offset_of(a_, a_.grad, first + i);
    }
    if (in) gather<T>(a_.input, in_offsets, count, a_.classes, in);
    for (int64_t i = 0; i < count; ++i) {
      const T* x = in ? in + i * a_.classes : static_cast<const T*>(a_.input.data) + in_offsets[i];
      const int64_t n = first + i;
      if (q && !ignored(n))
        read_probabilities(a_.probability, offset_of(a_, a_.probability, n), a_.classes, q);
      if constexpr (kPass == Pass::fused) {
        T* dx = out ? out + i * a_.classes : static_cast<T*>(a_.grad.data) + out_offsets[i];
        if (x == dx && !q && fused(n, dx, exponentials)) continue;
      }
      if constexpr (kPass != Pass::backward) forward_row(n, x, q);
      if constexpr (kPass != Pass::forward)
        backward_row<kPass>(
            n, x, out ? out + i * a_.classes : static_cast<T*>(a_.grad.data) + out_offsets[i], q);
    }
    if (out) scatter(a_.grad, out_offsets, count, a_.classes, static_cast<const T*>(out));
  }

  void forward_row(int64_t n, const T* x, const A* q) {
    if (a_.argmax) a_.argmax[n] = row_argmax(x, a_.classes);
    losses_[n] = z_losses_[n] = a_.lse[n] = 0;
    if (ignored(n) && !a_.argmax) return;
    const bool kept = !ignored(n);
    const RowLoss r = row_loss(row_, x, kept && a_.target ? a_.target[n] : 0, q);
    if (kept) return keep(n, r);
    a_.lse[n] = r.lse;
  }

  // Loss and gradient in one go for the plain case; false where the general case is needed.
  bool fused(int64_t n, T* x, A* exponentials) {
    if constexpr (std::is_same_v<T, A> && !std::is_same_v<A, double>) exponentials = x;
    if (!is_plain(row_) || ignored(n) || a_.argmax) return false;
    RowLoss r;
    const double g_z = a_.z_loss != 0 ? 1 / z_denominator_ : 0;
    if (!fused_row(row_, x, a_.target[n], 1 / denominator_, g_z, x + a_.classes, exponentials, &r))
      return false;
    keep(n, r);
    return true;
  }

  void keep(int64_t n, const RowLoss& r) {
    a_.lse[n] = r.lse;
    losses_[n] = r.cross_entropy;
    z_losses_[n] = a_.z_loss != 0 ? a_.z_loss * r.lse * r.lse : 0;
  }

  template <Pass kPass>
  void backward_row(int64_t n, const T* x, T* dx, const A* q) {
    const double g_lse = kPass == Pass::backward && a_.grad_lse ? a_.grad_lse[n] : 0;
    if (ignored(n)) {
      if (g_lse == 0 || a_.classes == 0)
        std::memset(static_cast<void*>(dx), 0, static_cast<size_t>(a_.classes) * sizeof(T));
      else
        row_gradient(row_, x, dx, 0, q, a_.lse[n], 0, 0, g_lse);
      return;
    }
    double g = 1;
    if (kPass == Pass::backward)
      g = static_cast<const A*>(a_.grad_loss)[a_.reduction == Reduction::none ? n : 0];
    row_gradient(row_, x, dx, a_.target ? a_.target[n] : 0, q, a_.lse[n], g / denominator_,
                 a_.z_loss != 0 ? g / z_denominator_ : 0, g_lse);
  }

  void reduce() const {
    A* loss = static_cast<A*>(a_.loss);
    A* z_loss = static_cast<A*>(a_.z_loss_out);
    if (a_.reduction == Reduction::none) {
      for (int64_t n = 0; n < a_.tokens; ++n) {
        loss[n] = static_cast<A>(losses_[n] + z_losses_[n]);
        if (z_loss) z_loss[n] = static_cast<A>(z_losses_[n]);
      }
      return;
    }
    const double sum = pairwise_sum(0, a_.tokens, [&](int64_t n) { return losses_[n]; });
    const double z_sum =
        pairwise_sum(0, a_.tokens, [&](int64_t n) { return z_losses_[n]; }) / z_denominator_;
    *loss = static_cast<A>(sum / denominator_ + (a_.z_loss != 0 ? z_sum : 0));
    if (z_loss) *z_loss = static_cast<A>(z_sum);
  }

  const CrossEntropyArgs& a_;
  RowOptions<A> row_;
  int64_t bad_token_ = -1;
  double denominator_ = 1, z_denominator_ = 1;
  double* losses_ = nullptr;
  double* z_losses_ = nullptr;
};

template <class T>
void forward_as(CrossEntropyArgs& a, bool fused) {
  CrossEntropy<T> kernel(a);
  a.bad_token = kernel.bad_token();
  if (a.bad_token < 0) kernel.forward(fused);
}

// Checks the targets again: the user may have written to their memory since the forward.
template <class T>
void backward_as(CrossEntropyArgs& a) {
  CrossEntropy<T> kernel(a);
  a.bad_token = kernel.bad_token();
  if (a.bad_token < 0) kernel.backward();
}

void forward(CrossEntropyArgs& a, bool fused) {
  with_element_type(a.input.dtype, [&](auto t) { forward_as<decltype(t)>(a, fused); });
}

}  // namespace

void cross_entropy_forward(CrossEntropyArgs& a) { forward(a, false); }

void cross_entropy_fused(CrossEntropyArgs& a) {
  a.grad = a.input;
  forward(a, true);
}

void cross_entropy_backward(CrossEntropyArgs& a) {
  with_element_type(a.input.dtype, [&](auto t) { backward_as<decltype(t)>(a); });
}

}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
