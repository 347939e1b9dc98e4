// What the kernels share: small products, matrices that are turned, and rows of other types.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <limits>

namespace lit_small_lm {

using at::Tensor;
using Vector = at::vec::Vectorized<float>;
constexpr int64_t WIDTH = Vector::size();
constexpr float NONE = -std::numeric_limits<float>::infinity();  // the score of what is not seen, or not possible

// The next whole number of vectors.
inline int64_t padded(int64_t size) {
  return (size + WIDTH - 1) / WIDTH * WIDTH;
}

// Memory to work in, which begins with a line of the cache.
class Place {
 public:
  Place(int64_t rows, int64_t columns)
      : size_(rows * columns), held_(c10::GetCPUAllocator()->allocate(size_ * sizeof(float))) {}

  float* data() { return static_cast<float*>(held_.get()); }
  void clear() { std::fill_n(data(), size_, 0); }

 private:
  int64_t size_;
  at::DataPtr held_;
};

// Rows in memory, `step` apart.
template <typename T>
struct Rows {
  T* data;
  int64_t step;

  T* at(int64_t row, int64_t column = 0) const { return data + row * step + column; }
  Rows from(int64_t row, int64_t column = 0) const { return {at(row, column), step}; }
};

using Matrix = Rows<const float>;

// c (m, n) = a (m, k) b (k, n), or added to c, whose rows are `step` apart; by oneDNN's kernels for matrices that lie
// in the cache.
inline void multiply(int64_t m, int64_t n, int64_t k, Matrix a, Matrix b, float* c, int64_t step, bool add) {
  at::native::cpublas::brgemm(m, n, k, a.step, b.step, step, add, a.data, b.data, c);
}

// Called behind the products of a thread: processors that have registers for tiles are told that those are free.
inline void multiplied() {
  at::native::cpublas::brgemm_release(false);
}

// from (rows, columns) -> to (columns, rows), whose rows are `step` apart.
inline void turn(Matrix from, int64_t rows, int64_t columns, float* to, int64_t step) {
  for (int64_t j = 0; j < columns; j += WIDTH) {
    for (int64_t i = 0; i < rows; i += WIDTH) {
      const int64_t m = std::min(WIDTH, rows - i), n = std::min(WIDTH, columns - j);
      at::vec::transpose_mxn<float>(from.at(i, j), from.step, to + j * step + i, step, m, n);
    }
  }
}

// Rows of x, `step` apart, laid side by side as floats.
template <typename T>
Matrix lay(const T* x, int64_t step, int64_t rows, int64_t columns, Place& place) {
  for (int64_t row = 0; row < rows; row++) {
    at::vec::convert(x + row * step, place.data() + row * columns, columns);
  }
  return {place.data(), columns};
}

// Floats to rows that are `step` apart, of the type of those.
template <typename T>
void write(Matrix from, int64_t rows, int64_t columns, T* to, int64_t step) {
  for (int64_t row = 0; row < rows; row++) {
    at::vec::convert(from.at(row), to + row * step, columns);
  }
}

}  // namespace lit_small_lm
