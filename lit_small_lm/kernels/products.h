// Products of large matrices: a linear map and its two gradients.
//
// Forward, and for the gradient by the input, oneDNN's product is called, as `products.py` does in Python. That by the
// weights, a sum over thousands of rows, is made here of small products: MKL reaches 93 of about 110 GFLOP/s with it
// and oneDNN no more, since one of its factors has to be turned first. Here rows are taken by some hundred, so that
// what is turned stays in the processor's cache.

#pragma once

#include "matrix.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

namespace lit_small_lm {
namespace {

constexpr int64_t ROWS = 512;     // of a chunk
constexpr int64_t COLUMNS = 64;   // of a block of the sum
constexpr int64_t OUTPUTS = 128;  // of a block of the sum

// x (rows, m), y (rows, n) -> sum (m, n): what all rows give together.
void sum_over_rows(Matrix x, int64_t m, Matrix y, int64_t n, int64_t rows, float* sum) {
  const int64_t step = ROWS + WIDTH;  // not a power of two, of which few fit into a cache
  Place turned(m, step);
  for (int64_t row = 0; row < rows; row += ROWS) {
    const int64_t count = std::min(ROWS, rows - row);
    at::parallel_for(0, (m + WIDTH - 1) / WIDTH, 4, [&](int64_t first, int64_t last) {
      const int64_t from = first * WIDTH, to = std::min(m, last * WIDTH);
      turn(x.from(row, from), count, to - from, turned.data() + from * step, step);
    });
    at::parallel_for(0, (n + COLUMNS - 1) / COLUMNS, 1, [&](int64_t first, int64_t last) {
      for (int64_t j = first * COLUMNS; j < std::min(n, last * COLUMNS); j += COLUMNS) {
        for (int64_t i = 0; i < m; i += OUTPUTS) {
          multiply(std::min(OUTPUTS, m - i), std::min(COLUMNS, n - j), count, {turned.data() + i * step, step},
                   y.from(row, j), sum + i * n + j, n, row > 0);
        }
      }
      multiplied();
    });
  }
}

// grad (rows, outputs), h (rows, inputs) -> (outputs, inputs).
Tensor product_by_weight(const Tensor& grad_, const Tensor& h_) {
  const Tensor grad = grad_.contiguous(), h = h_.contiguous();
  const int64_t rows = h.size(0), outputs = grad.size(1), inputs = h.size(1);
  TORCH_CHECK(grad.size(0) == rows && grad.scalar_type() == at::kFloat && h.scalar_type() == at::kFloat,
              "product_by_weight: ", grad.sizes(), " and ", h.sizes(), "; allowed: as many rows, in float32");
  if (rows == 0) {
    return at::zeros({outputs, inputs}, h.options());
  }
  const Matrix of_grad{grad.const_data_ptr<float>(), outputs}, of_h{h.const_data_ptr<float>(), inputs};
  Tensor found = at::empty({outputs, inputs}, h.options());
  if (outputs <= inputs) {
    sum_over_rows(of_grad, outputs, of_h, inputs, rows, found.data_ptr<float>());
    return found;
  }
  Place sum(inputs, outputs);
  sum_over_rows(of_h, inputs, of_grad, outputs, rows, sum.data());
  turn({sum.data(), outputs}, inputs, outputs, found.data_ptr<float>(), inputs);
  return found;
}

// h (..., inputs), weight (outputs, inputs) -> (..., outputs).
Tensor product(const Tensor& h, const Tensor& weight) {
  static const auto onednn = c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_linear_pointwise", "");
  torch::jit::Stack stack{h, weight, at::IValue(), "none", c10::List<std::optional<at::Scalar>>(), ""};
  onednn.callBoxed(stack);
  return stack[0].toTensor();
}

}  // namespace

}  // namespace lit_small_lm
