// Facts about the library and the processor, as JSON: operators return no dictionaries.
#include <cstdint>
#include <iomanip>
#include <map>
#include <sstream>
#include <string>
#include <type_traits>

#include "constants.h"
#include "cpu/linear_cross_entropy.h"
#include "cuda/cross_entropy.h"
#include "glue/ops.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

namespace llama_fast {
namespace {

template <class Value>
std::string as_json(const std::map<std::string, Value>& facts) {
  std::ostringstream json;
  const char* separator = "{";
  for (const auto& [name, value] : facts) {
    json << separator << std::quoted(name) << ": ";
    if constexpr (std::is_same_v<Value, std::string>) {
      json << std::quoted(value);
    } else {
      json << std::boolalpha << value;
    }
    separator = ", ";
  }
  json << (facts.empty() ? "{}" : "}");
  return json.str();
}

}  // namespace

std::string build_info() {
#if defined(__clang__)
  const std::string compiler = "clang " __clang_version__;
#else
  const std::string compiler = "gcc " __VERSION__;
#endif
#if defined(__x86_64__)
  const std::string architecture = "x86_64";
#elif defined(__aarch64__)
  const std::string architecture = "aarch64";
#else
  const std::string architecture = "other";
#endif
  return as_json<std::string>({{"compiler", compiler},
                               {"cxx_standard", std::to_string(__cplusplus)},
                               {"architecture", architecture},
                               {"not_enough_memory", LF_NOT_ENOUGH_MEMORY}});
}

std::string constants() {
  return as_json<int64_t>(
      {{"reduction.none", static_cast<int64_t>(Reduction::none)},
       {"reduction.mean", static_cast<int64_t>(Reduction::mean)},
       {"reduction.sum", static_cast<int64_t>(Reduction::sum)},
       {"dtype.float64", static_cast<int64_t>(DType::f64)},
       {"dtype.float32", static_cast<int64_t>(DType::f32)},
       {"dtype.bfloat16", static_cast<int64_t>(DType::bf16)},
       {"dtype.float16", static_cast<int64_t>(DType::f16)},
       {"attention_backward.q", kGradQ},
       {"attention_backward.k", kGradK},
       {"attention_backward.v", kGradV},
       {"attention_backward.bias", kGradBias},
       {"attention_backward.alibi_slopes", kGradAlibiSlopes},
       {"attention_backward.sinks", kGradSinks},
       {"linear_cross_entropy.input", kGradLinearInput},
       {"linear_cross_entropy.linear_weight", kGradLinearWeight},
       {"linear_cross_entropy.linear_bias", kGradLinearBias},
       {"rms_norm_backward.dx", kGradX},
       {"rms_norm_backward.dweight", kGradWeight},
       {"swiglu_backward.gate", kGradGate},
       {"swiglu_backward.up", kGradUp},
       {"attention.few_rows", kFewRows},
       {"attention.page_unit", kPageUnit},
       {"philox.rounds", kPhiloxRounds},
       {"philox.multiplier.0", kPhiloxMultipliers[0]},
       {"philox.multiplier.1", kPhiloxMultipliers[1]},
       {"philox.key_step.0", kPhiloxKeySteps[0]},
       {"philox.key_step.1", kPhiloxKeySteps[1]},
       {"linear_cross_entropy_budget.min", kMinBudget},
       {"linear_cross_entropy_budget.max", kMaxBudget},
       {"cross_entropy.max_exact_lse", static_cast<int64_t>(cuda::kMaxExactLse)},
       {"output_cache.min_bytes", kMinCachedOutput},
       {"output_cache.default_bytes", kDefaultOutputCache}});
}

namespace {

#if defined(__x86_64__)

// For features that __builtin_cpu_supports has no name for in compilers still in use: a mask of
// ECX of CPUID leaf 1, and bit `bit` of EAX or EDX of leaf 7.
bool leaf1(unsigned mask) {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & mask) != 0;
}

bool leaf7(unsigned subleaf, char reg, int bit) {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, subleaf, &eax, &ebx, &ecx, &edx)) return false;
  return ((reg == 'a' ? eax : edx) >> bit) & 1;
}

// Whether the operating system saves the AMX tile registers (XCR0 bits 17 and 18).
bool saves_tiles() {
  if (!leaf1(bit_OSXSAVE)) return false;
  uint32_t low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & 0x60000) == 0x60000;
}

std::map<std::string, bool> features() {
  __builtin_cpu_init();
  const bool tiles = saves_tiles();
  const bool avx = __builtin_cpu_supports("avx") != 0;
  const bool avx512 = __builtin_cpu_supports("avx512f") != 0;
  return {{"sse4_2", __builtin_cpu_supports("sse4.2") != 0},
          {"avx", avx},
          {"avx2", __builtin_cpu_supports("avx2") != 0},
          {"fma", __builtin_cpu_supports("fma") != 0},
          {"f16c", avx && leaf1(bit_F16C)},
          {"avx512f", avx512},
          {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
          {"avx512dq", __builtin_cpu_supports("avx512dq") != 0},
          {"avx512vl", __builtin_cpu_supports("avx512vl") != 0},
          {"avx512_vnni", __builtin_cpu_supports("avx512vnni") != 0},
          {"avx512_bf16", avx512 && leaf7(1, 'a', 5)},
          {"avx512_fp16", avx512 && leaf7(0, 'd', 23)},
          {"amx_bf16", tiles && leaf7(0, 'd', 22)},
          {"amx_int8", tiles && leaf7(0, 'd', 25)}};
}

#elif defined(__aarch64__) && defined(__linux__)

std::map<std::string, bool> features() {
  const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
  // Bit numbers as in Linux's asm/hwcap.h, written out because old headers lack the later ones.
  return {{"neon", (first >> 1) & 1},   {"fp16", (first >> 10) & 1}, {"dotprod", (first >> 20) & 1},
          {"sve", (first >> 22) & 1},   {"sve2", (second >> 1) & 1}, {"i8mm", (second >> 13) & 1},
          {"bf16", (second >> 14) & 1}, {"sme", (second >> 23) & 1}};
}

#else

std::map<std::string, bool> features() { return {}; }

#endif

}  // namespace

std::string cpu_features() { return as_json(features()); }

}  // namespace llama_fast
