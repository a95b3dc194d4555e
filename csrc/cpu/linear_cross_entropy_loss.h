// Linear cross-entropy: the tokens that are not ignored, their losses, and how these are reduced.
#pragma once

#include <vector>

#include "cpu/cross_entropy_row.h"
#include "cpu/linear_cross_entropy.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// A: type computed in.
template <class A>
struct Losses {
  const LinearCrossEntropyArgs& a;
  RowOptions<A> options{};
  std::vector<int64_t> kept;             // tokens whose target is not ignored
  std::vector<double> losses, z_losses;  // of every token, 0 for those ignored
  double denominator = 1, z_denominator = 1;

  explicit Losses(const LinearCrossEntropyArgs& args)
      : a(args), losses(static_cast<size_t>(args.tokens)), z_losses(losses.size()) {
    for (int64_t n = 0; n < a.tokens; ++n)
      if (a.target[n] != a.ignore_index) kept.push_back(n);
    options.classes = a.classes;
    options.weight = static_cast<const A*>(a.weight);
    options.smoothing = a.label_smoothing;
    options.softcap = a.softcap;
    options.z_loss = a.z_loss;
    options.weight_sum = static_cast<double>(a.classes);
    if (options.weight != nullptr && a.label_smoothing > 0)
      options.weight_sum = pairwise_sum(0, a.classes, [&](int64_t c) { return options.weight[c]; });
    if (a.reduction != Reduction::mean) return;
    z_denominator = denominator = static_cast<double>(kept.size());
    if (options.weight != nullptr)
      denominator = sum_of_kept([&](int64_t n) { return options.weight[a.target[n]]; });
  }

  // Writes loss and z-loss.
  void reduce() const {
    A* loss = static_cast<A*>(a.loss);
    A* z_loss = static_cast<A*>(a.z_loss_out);
    if (a.reduction == Reduction::none) {
      for (size_t n = 0; n < losses.size(); ++n) {
        loss[n] = static_cast<A>(losses[n] + z_losses[n]);
        z_loss[n] = static_cast<A>(z_losses[n]);
      }
      return;
    }
    const double sum = sum_of_kept([&](int64_t n) { return losses[size_t(n)]; });
    const double z_sum =
        sum_of_kept([&](int64_t n) { return z_losses[size_t(n)]; }) / z_denominator;
    *loss = static_cast<A>(sum / denominator + (a.z_loss != 0 ? z_sum : 0));
    *z_loss = static_cast<A>(z_sum);
  }

 private:
  template <class F>
  double sum_of_kept(const F& of) const {
    return pairwise_sum(0, static_cast<int64_t>(kept.size()),
                        [&](int64_t i) { return of(kept[static_cast<size_t>(i)]); });
  }
};

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
