// Shared by the forward and backward attention kernels: the location of sequences, the keys that a
// query sees, reading and writing of rows, and the computation of a tile of scores.
//
// A tile is kTileQueries rows (queries) by kTileKeys columns (keys) of the score matrix of one
// head.
#pragma once

#include <limits>
#include <type_traits>

#include "cpu/attention.h"
#include "cpu/matmul/matmul.h"
#include "cpu/philox.h"
#include "cpu/scratch.h"
#include "cpu/simd_math.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int64_t kTileQueries = 96;  // a multiple of kBlockQueries
constexpr int64_t kTileKeys = 128;    // a multiple of every panel width
// Queries of a tile whose scores are computed and used together: they stay in the L1 cache, and
// keys that none of them sees are skipped. A multiple of the largest kPack and of the rows of
// a register tile: kBlockTileRows, or two tiles of AMX.
#if defined(__AMX_BF16__)
constexpr int64_t kBlockQueries = 32;
#else
constexpr int64_t kBlockQueries = 24;
#endif

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// Wider than T, for the few numbers of a row that scale all others.
template <class T>
struct WideOf {
  using type = double;
};
template <>
struct WideOf<double> {
  using type = long double;
};
template <class T>
using wide = typename WideOf<T>::type;

// A sequence of the batch: its lengths and its location. Packed tensors have no batch dimension;
// their sequences are concatenated.
struct Sequence {
  int64_t index, batch, queries, keys, first_query = 0, first_key = 0;
  int64_t unpadded_begin = 0, unpadded_end;  // padding covers all keys outside

  Sequence(const AttentionArgs& a, int64_t sequence)
      : index(sequence), batch(sequence), queries(a.queries), keys(a.keys) {
    if (a.cu_queries != nullptr) {
      batch = 0;
      first_query = a.cu_queries[index];
      queries = a.cu_queries[index + 1] - first_query;
      first_key = a.cu_keys[index];
      keys = a.cu_keys[index + 1] - first_key;
    }
    if (a.key_lengths != nullptr) keys = a.key_lengths[index];
    unpadded_end = keys;
    if (a.padding != nullptr) {
      const uint8_t* p = a.padding + index * a.padding_stride_batch;
      const int64_t step = a.padding_stride_key;
      while (unpadded_end > 0 && p[(unpadded_end - 1) * step]) --unpadded_end;
      while (unpadded_begin < unpadded_end && p[unpadded_begin * step]) ++unpadded_begin;
    }
  }
};

// Keys [begin, end) that query i sees through the causal mask, the window and padding at the ends.
struct KeyRange {
  int64_t begin, end;
};
LF_INLINE KeyRange visible(const AttentionArgs& a, const Sequence& s, int64_t i) {
  const int64_t diagonal = i + s.keys - s.queries;  // aligned at the last query and the last key
  int64_t end = s.unpadded_end;
  if (a.causal) end = min(end, diagonal + 1);
  // A window as wide as both sequences masks nothing; ignoring it avoids overflow of the sums.
  const int64_t widest = s.keys + s.queries;
  if (a.window_right >= 0 && a.window_right < widest) end = min(end, diagonal + a.window_right + 1);
  int64_t begin = s.unpadded_begin;
  if (a.window_left >= 0 && a.window_left < widest) begin = max(begin, diagonal - a.window_left);
  end = max(end, 0);
  return {min(begin, end), end};
}

// --- rows of tensors -------------------------------------------------------------------------

template <class T>
LF_INLINE const T* row_pointer(const Tensor4& t, int64_t batch, int64_t head, int64_t row) {
  return static_cast<const T*>(t.data) + batch * t.stride_batch + head * t.stride_head +
         row * t.stride_row;
}

template <class T>
LF_INLINE T& at(const Tensor4& t, int64_t batch, int64_t head, int64_t row) {
  return *const_cast<T*>(row_pointer<T>(t, batch, head, row));
}

template <class T>
void read_numbers(const T* p, int64_t stride, int64_t n, acc_t<T>* out) {
  constexpr int lanes = kLanes<acc_t<T>>;
  int64_t i = 0;
  if (stride == 1)
    for (; i + lanes <= n; i += lanes) store(out + i, load_acc(p + i));
  for (; i < n; ++i) out[i] = load_one(p + i * stride);
}

template <class T>
void write_numbers(T* p, int64_t stride, int64_t n, const acc_t<T>* in) {
  constexpr int lanes = kLanes<acc_t<T>>;
  int64_t i = 0;
  if (stride == 1)
    for (; i + lanes <= n; i += lanes) store_acc(p + i, load(in + i));
  for (; i < n; ++i) store_one(p + i * stride, in[i]);
}

// Reads n numbers of a tensor of type `dtype` as the type of the computation.
inline void read_row(const Tensor4& t, DType dtype, int64_t batch, int64_t head, int64_t row,
                     int64_t n, float* out) {
  if (dtype == DType::f32)
    read_numbers(row_pointer<float>(t, batch, head, row), t.stride_col, n, out);
  else if (dtype == DType::bf16)
    read_numbers(row_pointer<bf16>(t, batch, head, row), t.stride_col, n, out);
  else
    read_numbers(row_pointer<f16>(t, batch, head, row), t.stride_col, n, out);
}
inline void read_row(const Tensor4& t, DType, int64_t batch, int64_t head, int64_t row, int64_t n,
                     double* out) {
  read_numbers(row_pointer<double>(t, batch, head, row), t.stride_col, n, out);
}
// bfloat16 numbers as they are.
inline void read_row(const Tensor4& t, DType, int64_t batch, int64_t head, int64_t row, int64_t n,
                     uint16_t* out) {
  const uint16_t* p = row_pointer<uint16_t>(t, batch, head, row);
  if (t.stride_col == 1)
    std::memcpy(out, p, static_cast<size_t>(n) * sizeof(uint16_t));
  else
    for (int64_t i = 0; i < n; ++i) out[i] = p[i * t.stride_col];
}

inline void write_row(const Tensor4& t, DType dtype, int64_t batch, int64_t head, int64_t row,
                      int64_t n, const float* in) {
  if (dtype == DType::f32)
    write_numbers(const_cast<float*>(row_pointer<float>(t, batch, head, row)), t.stride_col, n, in);
  else if (dtype == DType::bf16)
    write_numbers(const_cast<bf16*>(row_pointer<bf16>(t, batch, head, row)), t.stride_col, n, in);
  else
    write_numbers(const_cast<f16*>(row_pointer<f16>(t, batch, head, row)), t.stride_col, n, in);
}
inline void write_row(const Tensor4& t, DType, int64_t batch, int64_t head, int64_t row, int64_t n,
                      const double* in) {
  write_numbers(const_cast<double*>(row_pointer<double>(t, batch, head, row)), t.stride_col, n, in);
}

// `rows` rows of `n` numbers into rows of `stride`, padded with zeros.
template <class M>
void read_block(const Tensor4& t, DType dtype, int64_t batch, int64_t head, int64_t first,
                int64_t rows, int64_t n, int64_t stride, typename M::raw* out) {
  for (int64_t r = 0; r < rows; ++r, out += stride) {
    read_row(t, dtype, batch, head, first + r, n, out);
    for (int64_t c = n; c < stride; ++c) out[c] = 0;
  }
}

// Row length, in numbers, of a block that is used as A, by pack_transposed and by pack_along: a
// multiple of steps and of registers.
template <class M>
int64_t padded(int64_t n) {
  return round_lanes<M>(n);
}

// e^x, as accurate as the probabilities in a product of mode M.
template <class M>
LF_INLINE vec<typename M::acc> exp_softmax(vec<typename M::acc> x) {
  if constexpr (M::kPack == 1) {
    return vexp_softmax(x);
  } else {
    return vexp_coarse(x);
  }
}

// --- scores ------------------------------------------------------------------------------------

// Turns products q.k into scores: scale, softcap, bias, ALiBi, then -inf where masked.
template <class M>
struct Scores {
  using T = typename M::acc;
  using V = vec<T>;
  static constexpr int lanes = kLanes<T>;

  const AttentionArgs& a;
  const Sequence& s;
  int64_t head;
  T slope = 0;
  bool bias, mask, alibi, softcap;
  V lane_numbers;  // 0, 1, 2, ...

  Scores(const AttentionArgs& args, const Sequence& sequence, int64_t h)
      : a(args),
        s(sequence),
        head(h),
        bias(args.bias.data != nullptr && !args.bias_is_bool),
        mask(args.bias.data != nullptr && args.bias_is_bool),
        alibi(args.alibi != nullptr),
        softcap(args.softcap > 0) {
    if (alibi)
      slope = static_cast<const T*>(
          a.alibi)[s.index * a.alibi_stride_batch + head * a.alibi_stride_head];
    for (int i = 0; i < lanes; ++i) lane_numbers[i] = static_cast<T>(i);
  }

  // `rows` rows of products in x (row length kTileKeys) for the queries i0.. and the keys j0.., n
  // of them. Returns the factor that turns x into scores; columns [n, round_lanes(n)) become -inf.
  // `slope_of_cap`, when not null, receives d(capped)/d(scaled product) where there is a softcap.
  T apply(int64_t i0, int64_t rows, int64_t j0, int64_t n, T* x, T* slope_of_cap) const {
    const int64_t width = round_lanes<M>(n);
    // A factor above 0 does not change -inf, so the caller can apply it later.
    const bool scale_later = !bias && !alibi && !softcap && a.scale > 0;
    alignas(64) uint8_t buffer[kTileKeys], mask_buffer[kTileKeys];
    const uint8_t* padded_keys = nullptr;
    if (a.padding != nullptr) {
      padded_keys = a.padding + s.index * a.padding_stride_batch + j0 * a.padding_stride_key;
      padded_keys = consecutive(padded_keys, a.padding_stride_key, n, buffer);
    }
    for (int64_t r = 0; r < rows; ++r, x += kTileKeys) {
      const int64_t i = i0 + r;
      if (!scale_later)
        transform(i, j0, n, x, slope_of_cap == nullptr ? nullptr : slope_of_cap + r * kTileKeys);
      if (mask) {
        const uint8_t* p = row_pointer<uint8_t>(a.bias, s.index, head, i) + j0 * a.bias.stride_col;
        hide(consecutive(p, a.bias.stride_col, n, mask_buffer), false, width, x);
      }
      if (padded_keys != nullptr) hide(padded_keys, true, width, x);
      const KeyRange seen = visible(a, s, i);
      fill(x, min(max(seen.begin - j0, 0), n));
      const int64_t last = max(min(seen.end - j0, n), 0);
      fill(x + last, width - last);
    }
    return scale_later ? static_cast<T>(a.scale) : T(1);
  }

  // Whether every key is visible and a score is a product times the scale.
  bool untouched(int64_t i0, int64_t rows, int64_t j0, int64_t n) const {
    if (softcap || bias || mask || alibi || n != round_lanes<M>(n)) return false;
    if (visible(a, s, i0 + rows - 1).begin > j0 || visible(a, s, i0).end < j0 + n) return false;
    return a.padding == nullptr || !any_padded(j0, n);
  }

  // Distance |i + T - S - j| that ALiBi multiplies by the negative slope.
  LF_INLINE T distance(int64_t i, int64_t j) const {
    const int64_t d = i + s.keys - s.queries - j;
    return static_cast<T>(d < 0 ? -d : d);
  }

 private:
  bool any_padded(int64_t j0, int64_t n) const {
    const uint8_t* p = a.padding + s.index * a.padding_stride_batch + j0 * a.padding_stride_key;
    uint8_t any = 0;  // True is any byte but zero
    if (a.padding_stride_key == 1)
      for (int64_t c = 0; c < n; ++c) any |= p[c];
    else
      for (int64_t c = 0; c < n; ++c) any |= p[c * a.padding_stride_key];
    return any != 0;
  }

  // n bytes one after another, readable up to whole registers.
  static const uint8_t* consecutive(const uint8_t* p, int64_t stride, int64_t n, uint8_t* buffer) {
    if (stride == 1 && n == round_lanes<M>(n)) return p;
    for (int64_t c = 0; c < n; ++c) buffer[c] = p[c * stride];
    return buffer;
  }

  // -inf where the byte is (not) zero.
  static LF_INLINE void hide(const uint8_t* bytes, bool nonzero, int64_t width, T* x) {
    using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
    for (int64_t c = 0; c < width; c += lanes) {
      typename Lanes<uint8_t, lanes>::type byte;
      std::memcpy(&byte, bytes + c, sizeof byte);
      const auto set = __builtin_convertvector(byte, vec<Integer>) != 0;
      const V v = load(x + c), hidden = set1(-kInfinity<T>);
      store(x + c, nonzero ? (set ? hidden : v) : (set ? v : hidden));
    }
  }

  static LF_INLINE void fill(T* x, int64_t n) {
    const V hidden = set1(-kInfinity<T>);
    for (; n >= lanes; n -= lanes, x += lanes) store(x, hidden);
    if (n > 0) store_acc_n(x, hidden, n);
  }

  // Scale, softcap, bias and ALiBi of one row: the same bits in the forward and in the backward.
  LF_APART void transform(int64_t i, int64_t j0, int64_t n, T* x, T* slope_of_cap) const {
    const int64_t width = round_lanes<M>(n);
    const T scale = static_cast<T>(a.scale), cap = static_cast<T>(a.softcap);
    alignas(64) T added[kTileKeys];
    if (bias) {
      Tensor4 t = a.bias;
      t.data = static_cast<char*>(t.data) + j0 * t.stride_col * element_size(a.bias_dtype);
      read_row(t, a.bias_dtype, s.index, head, i, n, added);
    }
    const V diagonal = set1(static_cast<T>(i + s.keys - s.queries - j0)) - lane_numbers;
    for (int64_t c = 0; c < width; c += lanes) {
      V v = load(x + c) * scale;
      if (softcap) {
        const V t = vtanh(v / cap);
        v = t * cap;
        if (slope_of_cap != nullptr) store(slope_of_cap + c, T(1) - t * t);
      }
      if (bias) v += load(added + c);
      if (alibi) {
        const V d = diagonal - static_cast<T>(c);
        v -= slope * (d < T(0) ? -d : d);
      }
      store(x + c, v);
    }
  }
};

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
