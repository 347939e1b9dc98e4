// The head's loss and both its gradients, with the logits of some positions in memory at once.
//
// Logits are held turned, ids by positions: the head's weights are read as they lie, and sums over ids run down
// columns. Ids are taken by blocks that stay in the processor's cache. The first sweep leaves of each block the shares
// that its ids have in their sum alone; once the sums of all blocks are known, the second one makes shares gradients,
// and multiplies these with weights and hidden states before they leave the cache.
// `nn.head.summed_nll` in plain pieces is the plain twin.

#pragma once

#include "matrix.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>

namespace lit_small_lm {
namespace {

constexpr int64_t IDS = 128;  // of a block, unless threads would have none; half and twice as many take as long

// What is asked of M positions, and where the answers go.
struct Question {
  Matrix h, weight;        // (M, D), (V, D)
  const int64_t* targets;  // (M,)
  const float* weights;    // (M,); none: all are one
  at::IntArrayRef impossible;
  int64_t width, ids;              // D, V
  float *nats, *of_h, *of_weight;  // (M,), (M, D), (V, D)
};

// Scores of a block of ids (count, t) become shares of their sum that are yet to be divided by it; the largest score
// and the sum for each position.
C10_NOINLINE void take_shares(float* scores, int64_t count, int64_t t, float* most, float* sum) {
  for (int64_t column = 0; column < t; column += WIDTH) {
    Vector largest(std::numeric_limits<float>::lowest()), total(0);
    for (int64_t at = column; at < count * t; at += t) {
      largest = at::vec::maximum(largest, Vector::loadu(scores + at));
    }
    for (int64_t at = column; at < count * t; at += t) {
      const Vector taken = (Vector::loadu(scores + at) - largest).exp_u20();
      taken.store(scores + at);
      total = total + taken;
    }
    largest.store(most + column);
    total.store(sum + column);
  }
}

// Works on `count` positions from `first` on, and then on others.
class Loss {
 public:
  Loss(const Question& asked, int64_t rows)
      : asked_(asked), ids_(std::clamp(padded(asked.ids / at::get_num_threads()), WIDTH, IDS)),
        blocks_((asked.ids + ids_ - 1) / ids_), parts_(std::min<int64_t>(at::get_num_threads(), blocks_)),
        h_(padded(rows), asked.width), h_turned_(asked.width, padded(rows)), scores_(asked.ids, padded(rows)),
        most_(blocks_, padded(rows)), sums_(blocks_, padded(rows)), wanted_(1, padded(rows)),
        weights_(1, padded(rows)), by_h_(parts_ * padded(rows), asked.width) {}

  void piece(int64_t first, int64_t count) {
    first_ = first, count_ = count, t_ = padded(count);
    h_.clear(), wanted_.clear(), weights_.clear();
    std::copy_n(asked_.h.at(first), count * asked_.width, h_.data());
    turn(h(), t_, asked_.width, h_turned_.data(), t_);
    for (int64_t column = 0; column < count; column++) {
      weights_.data()[column] = asked_.weights ? asked_.weights[first + column] : 1;
    }
    at::parallel_for(0, blocks_, 1, [&](int64_t from, int64_t to) {
      for (int64_t block = from; block < to; block++) {
        score(block);
      }
      multiplied();
    });
    normalise();
    differentiate();
  }

 private:
  Question asked_;
  int64_t ids_, blocks_, parts_;  // ids of a block, how many blocks, and among how many threads
  Place h_, h_turned_, scores_;   // padded with zeros, so that products have few different sizes
  Place most_;                    // of each block and position the largest score, then e^(it - the largest of all)
  Place sums_;                    // of each block and position the sum of shares, then what these are multiplied with
  Place wanted_;                  // the scores of the targets, then their nats
  Place weights_;                 // of the positions
  Place by_h_;                    // each thread's part of the gradient by h
  int64_t first_ = 0, count_ = 0, t_ = 0;

  Matrix h() { return {h_.data(), asked_.width}; }
  int64_t ids_of(int64_t block) const { return std::min(ids_, asked_.ids - block * ids_); }
  float* scores_of(int64_t block) { return scores_.data() + block * ids_ * t_; }

  // Call f(score, column) for each position whose target is in this block.
  template <typename F>
  void each_target(int64_t block, F f) {
    for (int64_t column = 0; column < count_; column++) {
      const int64_t row = asked_.targets[first_ + column] - block * ids_;
      if (row >= 0 && row < ids_of(block)) {
        f(scores_of(block)[row * t_ + column], column);
      }
    }
  }

  void score(int64_t block) {
    const Matrix queries{h_turned_.data(), t_}, weight = asked_.weight.from(block * ids_);
    multiply(ids_of(block), t_, asked_.width, weight, queries, scores_of(block), t_, false);
    for (const int64_t id : asked_.impossible) {
      if (id / ids_ == block) {
        std::fill_n(scores_.data() + id * t_, t_, NONE);
      }
    }
    each_target(block, [&](float score, int64_t column) { wanted_.data()[column] = score; });
    take_shares(scores_of(block), ids_of(block), t_, most_.data() + block * t_, sums_.data() + block * t_);
  }

  void normalise() {
    const int64_t end = blocks_ * t_;
    for (int64_t column = 0; column < t_; column += WIDTH) {
      Vector largest = Vector::loadu(most_.data() + column), total(0);
      for (int64_t at = column; at < end; at += t_) {
        largest = at::vec::maximum(largest, Vector::loadu(most_.data() + at));
      }
      for (int64_t at = column; at < end; at += t_) {
        const Vector part = (Vector::loadu(most_.data() + at) - largest).exp();
        part.store(most_.data() + at);
        total = total + part * Vector::loadu(sums_.data() + at);
      }
      const Vector factor = Vector::loadu(weights_.data() + column) / total;
      for (int64_t at = column; at < end; at += t_) {
        (Vector::loadu(most_.data() + at) * factor).store(sums_.data() + at);
      }
      (total.log() + (largest - Vector::loadu(wanted_.data() + column))).store(wanted_.data() + column);
    }
    std::copy_n(wanted_.data(), count_, asked_.nats + first_);
  }

  // Every thread adds up its own blocks' part of the gradient by h.
  void differentiate() {
    const int64_t size = t_ * asked_.width;
    at::parallel_for(0, parts_, 1, [&](int64_t from, int64_t to) {
      Place shares_turned(t_, ids_);
      for (int64_t part = from; part < to; part++) {
        const int64_t first = part * blocks_ / parts_, last = (part + 1) * blocks_ / parts_;
        for (int64_t block = first; block < last; block++) {
          derive(block, shares_turned, by_h_.data() + part * size, block > first);
        }
      }
      multiplied();
    });
    for (int64_t part = 1; part < parts_; part++) {
      float* sum = by_h_.data();
      at::vec::map2([](Vector x, Vector y) { return x + y; }, sum, sum, sum + part * size, size);
    }
    std::copy_n(by_h_.data(), count_ * asked_.width, asked_.of_h + first_ * asked_.width);
  }

  void derive(int64_t block, Place& shares_turned, float* by_h, bool add) {
    const int64_t ids = ids_of(block), width = asked_.width, from = block * ids_;
    float* shares = scores_of(block);
    for (int64_t row = 0; row < ids; row++) {
      at::vec::map2([](Vector x, Vector y) { return x * y; }, shares + row * t_, shares + row * t_,
                    sums_.data() + block * t_, t_);
    }
    each_target(block, [&](float& share, int64_t column) { share -= weights_.data()[column]; });
    turn({shares, t_}, ids, t_, shares_turned.data(), ids_);
    multiply(ids, width, t_, {shares, t_}, h(), asked_.of_weight + from * width, width, first_ > 0);
    multiply(t_, width, ids, {shares_turned.data(), ids_}, asked_.weight.from(from), by_h, width, add);
  }
};

// Refuse what would be read past its end, or as another type.
void verify(const Tensor& h, const Tensor& weight, const Tensor& targets, const Tensor& weights,
            at::IntArrayRef impossible, int64_t rows) {
  for (const Tensor& x : {h, weight, weights}) {
    TORCH_CHECK(!x.defined() || x.scalar_type() == at::kFloat, "nll_and_gradients: ", x.scalar_type(),
                "; allowed: float32");
  }
  const int64_t count = h.size(0), ids = weight.size(0);
  TORCH_CHECK(weight.size(1) == h.size(1) && targets.numel() == count &&
                  (!weights.defined() || weights.numel() == count),
              "nll_and_gradients: ", h.sizes(), ", ", weight.sizes(), " and ", targets.sizes());
  TORCH_CHECK(rows > 0, "nll_and_gradients: ", rows, " rows at once; at least 1");
  const auto known = [ids](int64_t id) {
    TORCH_CHECK(id >= 0 && id < ids, "nll_and_gradients: ", id, " of ", ids, " ids");
  };
  std::for_each_n(targets.const_data_ptr<int64_t>(), count, known);
  std::for_each(impossible.begin(), impossible.end(), known);
}

// h (M, D), weight (V, D), targets (M,), weights (M,) -> the nats (M,), and the gradients of their weighted sum by h
// and by weight; so many rows of h at once.
std::tuple<Tensor, Tensor, Tensor> nll_and_gradients(const Tensor& h_, const Tensor& weight_, const Tensor& targets_,
                                                     const std::optional<Tensor>& weights_, at::IntArrayRef impossible,
                                                     int64_t rows) {
  const Tensor h = h_.contiguous(), weight = weight_.contiguous(), targets = targets_.contiguous();
  const Tensor weights = weights_ ? weights_->contiguous() : Tensor();
  verify(h, weight, targets, weights, impossible, rows);
  const int64_t count = h.size(0), width = h.size(1), ids = weight.size(0);
  Tensor nats = at::empty({count}, h.options()), of_h = at::empty({count, width}, h.options());
  if (count == 0) {
    return {nats, of_h, at::zeros_like(weight)};
  }
  Tensor of_weight = at::empty({ids, width}, weight.options());
  const Question asked{{h.const_data_ptr<float>(), width}, {weight.const_data_ptr<float>(), width},
                       targets.const_data_ptr<int64_t>(), weights_ ? weights.const_data_ptr<float>() : nullptr,
                       impossible, width, ids, nats.data_ptr<float>(), of_h.data_ptr<float>(),
                       of_weight.data_ptr<float>()};
  Loss loss(asked, std::min(rows, count));
  for (int64_t first = 0; first < count; first += rows) {
    loss.piece(first, std::min(rows, count - first));
  }
  return {nats, of_h, of_weight};
}

}  // namespace
}  // namespace lit_small_lm
