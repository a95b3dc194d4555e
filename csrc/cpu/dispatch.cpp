#include "cpu/dispatch.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(LLAMA_FAST_HAVE_NEON_BF16) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(LLAMA_FAST_HAVE_AMX_BF16)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

// LLAMA_FAST_HAVE_<ISA> is set by the build for each instruction set that was compiled.
#define LF_DECLARE(isa)                               \
  namespace isa {                                     \
  void attention_forward(const AttentionArgs&);       \
  void attention_backward(const AttentionArgs&);      \
  void cross_entropy_forward(CrossEntropyArgs&);      \
  void cross_entropy_backward(CrossEntropyArgs&);     \
  void cross_entropy_fused(CrossEntropyArgs&);        \
  void rms_norm_forward(const RmsNormArgs&);          \
  void rms_norm_backward(const RmsNormArgs&);         \
  void rope(const RopeArgs&);                         \
  void swiglu_forward(const SwigluArgs&);             \
  void swiglu_backward(const SwigluArgs&);            \
  void linear_cross_entropy(LinearCrossEntropyArgs&); \
  void linear(const LinearArgs&);                     \
  int64_t linear_rows(DType);                         \
  }
#define LF_KERNELS(isa)                                                                \
  Kernels {                                                                            \
    #isa, isa::attention_forward, isa::attention_backward, isa::cross_entropy_forward, \
        isa::cross_entropy_backward, isa::cross_entropy_fused, isa::rms_norm_forward,  \
        isa::rms_norm_backward, isa::rope, isa::swiglu_forward, isa::swiglu_backward,  \
        isa::linear_cross_entropy, isa::linear, isa::linear_rows                       \
  }

namespace llama_fast {

#if defined(__aarch64__)
LF_DECLARE(neon)
#else
LF_DECLARE(portable)
#endif
#ifdef LLAMA_FAST_HAVE_NEON_BF16
LF_DECLARE(neon_bf16)
#endif
#ifdef LLAMA_FAST_HAVE_AVX2
LF_DECLARE(avx2)
#endif
#ifdef LLAMA_FAST_HAVE_AVX512
LF_DECLARE(avx512)
#endif
#ifdef LLAMA_FAST_HAVE_AVX512_BF16
LF_DECLARE(avx512_bf16)
#endif
#ifdef LLAMA_FAST_HAVE_AMX_BF16
LF_DECLARE(amx_bf16)
#endif

namespace {

struct Candidate {
  Kernels kernels;
  bool runs_here;
};

#ifdef LLAMA_FAST_HAVE_AVX512_BF16
bool has_avx512_bf16() {
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}
#endif

#ifdef LLAMA_FAST_HAVE_AMX_BF16
// Whether there are tile registers and the system lets this process use them. It has to be asked,
// because they enlarge the state that it saves for each thread.
bool has_amx_bf16() {
#if defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kTiles = 1u << 24, kBf16 = 1u << 22;  // of leaf 7, in edx
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTiles) == 0 || (d & kBf16) == 0)
    return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // of <asm/prctl.h>
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

#ifdef LLAMA_FAST_HAVE_NEON_BF16
// Bfloat16 products and half precision are extensions of Armv8.2, whose other instructions come
// with them.
bool has_bf16() {
#if defined(__linux__)
  // HWCAP_ASIMDHP and HWCAP2_BF16 of <asm/hwcap.h>.
  constexpr unsigned long kHalf = 1ul << 10, kBf16 = 1ul << 14;
  return (getauxval(AT_HWCAP) & kHalf) != 0 && (getauxval(AT_HWCAP2) & kBf16) != 0;
#else
  return false;
#endif
}
#endif

Kernels select() {
  // Best first.
  const Candidate candidates[] = {
#ifdef LLAMA_FAST_HAVE_AMX_BF16
      {LF_KERNELS(amx_bf16), has_avx512_bf16() && has_amx_bf16()},
#endif
#ifdef LLAMA_FAST_HAVE_AVX512_BF16
      {LF_KERNELS(avx512_bf16), has_avx512_bf16()},
#endif
#ifdef LLAMA_FAST_HAVE_AVX512
      {LF_KERNELS(avx512),
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")},
#endif
#ifdef LLAMA_FAST_HAVE_AVX2
      {LF_KERNELS(avx2), __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                             __builtin_cpu_supports("f16c")},
#endif
#ifdef LLAMA_FAST_HAVE_NEON_BF16
      {LF_KERNELS(neon_bf16), has_bf16()},
#endif
#if defined(__aarch64__)
      {LF_KERNELS(neon), true},
#else
      {LF_KERNELS(portable), true},
#endif
  };
  const char* requested = std::getenv("LLAMA_FAST_ISA");
  std::string names;
  for (const Candidate& c : candidates) {
    if (requested == nullptr || *requested == '\0') {
      if (c.runs_here) return c.kernels;
    } else if (std::strcmp(requested, c.kernels.isa) == 0) {
      if (c.runs_here) return c.kernels;
      throw std::runtime_error(std::string("LLAMA_FAST_ISA: this processor cannot run ") +
                               requested);
    }
    names += names.empty() ? c.kernels.isa : std::string(", ") + c.kernels.isa;
  }
  throw std::runtime_error("LLAMA_FAST_ISA: expected one of " + names + ", got " + requested);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels selected = select();
  return selected;
}

}  // namespace llama_fast
