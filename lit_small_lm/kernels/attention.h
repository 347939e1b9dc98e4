// Attention by strips of queries, forward and backward, in float32 whatever the type of the inputs.
//
// As in FlashAttention-2 (arXiv 2307.08691) nothing of the size of the scores is kept: beside the output there is one
// number for each query, the logarithm of the sum that its softmax divides by. The tricks: scores are held turned, keys
// by queries, so that the softmax runs down columns and few matrices have to be turned for the seven products; a strip
// of 64 queries has its scores in the processor's cache; and the products are oneDNN's for matrices that lie there,
// which come near the processor's limit for heads of 32 channels, too. Key/value heads are worked on beside each other,
// each by one thread, so that the order of all sums is the same however many there are.
// `nn.attention.plain_attention` with the dense mask is the plain twin.

#pragma once

#include "strips.h"

#include <ATen/ops/empty.h>

#include <optional>
#include <tuple>

namespace lit_small_lm {
namespace {

// Heads of a tensor (B, H, T, K), whose channels lie side by side.
template <typename T>
struct Heads {
  T* data;
  int64_t row, head, step, count, columns, width;

  explicit Heads(const Tensor& x)
      : data(static_cast<T*>(x.data_ptr())), row(x.stride(0)), head(x.stride(1)), step(x.stride(2)), count(x.size(1)),
        columns(x.size(2)), width(x.size(3)) {}

  T* at(int64_t b, int64_t h, int64_t t) const { return data + b * row + h * head + t * step; }

  Matrix read(int64_t b, int64_t h, Run rows, Place& place) const {
    return lay(at(b, h, rows.first), step, rows.length(), width, place);
  }
};

// x (count, width) of a strip -> (width, t), scaled; t is padded, and what lies beyond the strip is zero.
Matrix turned(Matrix x, int64_t count, int64_t width, Place& place, float scale = 1) {
  const int64_t t = padded(count);
  if (t > count) {
    std::fill_n(place.data(), width * t, 0);
  }
  turn(x, count, width, place.data(), t);
  if (scale != 1) {
    at::vec::map([scale](Vector part) { return part * Vector(scale); }, place.data(), place.data(), width * t);
  }
  return {place.data(), t};
}

// -inf instead of the scores of what is not seen.
inline void hide(float* scores, const bool* seen, int64_t count) {
  for (int64_t query = 0; query < count; query++) {
    scores[query] = seen[query] ? scores[query] : NONE;
  }
}

// Scores (s, t) of keys k (T, K) and scaled queries (K, t); -inf where a key is not seen.
void score(const Strip& strip, Matrix k, Matrix queries, int64_t width, float* scores) {
  const int64_t t = queries.step;
  strip.each([&](Run keys, int64_t row) {
    multiply(keys.length(), t, width, k.from(keys.first), queries, scores + row * t, t, false);
  });
  if (strip.causal && !strip.seen.data) {
    for (int64_t key = 1; key < strip.count(); key++) {
      std::fill_n(scores + (strip.queries.first + key) * t, key, NONE);
    }
  }
  for (const Mixed& part : strip.mixed) {
    for (int64_t key = 0; key < part.keys.length(); key++) {
      hide(scores + (part.row + key) * t, strip.seen.at(part.keys.first + key, strip.queries.first), strip.count());
    }
  }
}

// Scores (s, t) become shares that are yet to be divided by their sums; 1 / sum, and its logarithm, for each query.
C10_NOINLINE void share(float* scores, int64_t seen, int64_t t, float* inverse, float* log) {
  for (int64_t query = 0; query < t; query += WIDTH) {
    float* column = scores + query;
    Vector most(NONE), sum(0);
    for (int64_t key = 0; key < seen; key++) {
      most = at::vec::maximum(most, Vector::loadu(column + key * t));
    }
    for (int64_t key = 0; key < seen; key++) {
      const Vector taken = (Vector::loadu(column + key * t) - most).exp_u20();
      taken.store(column + key * t);
      sum = sum + taken;
    }
    (Vector(1) / sum).store(inverse + query);
    (most + sum.log()).store(log + query);
  }
}

// One thread's part of the forward pass, and the places that it works in.
template <typename T>
struct Forward {
  Heads<T> q, k, v, out;
  float* logs;
  const Strips& strips;
  float scale;
  int64_t step = stepped(k.columns);
  Place keys{k.columns, k.width}, values{v.columns, v.width}, values_turned{v.width, step}, near{QUERIES, q.width},
      near_turned{q.width, QUERIES}, scores{strips.most(), QUERIES}, inverse{1, QUERIES}, log{1, QUERIES},
      found{QUERIES, v.width}, found_turned{v.width, QUERIES};

  // A key/value head, and all heads of queries that read it.
  void group(int64_t b, int64_t g) {
    const Run all{0, k.columns};
    const Matrix key = k.read(b, g, all, keys);
    turn(v.read(b, g, all, values), v.columns, v.width, values_turned.data(), step);
    const int64_t repeat = q.count / k.count;
    for (int64_t h = g * repeat; h < (g + 1) * repeat; h++) {
      for (const Strip& strip : strips.of(b)) {
        answer(strip, b, h, key);
      }
    }
  }

  void answer(const Strip& strip, int64_t b, int64_t h, Matrix key) {
    const int64_t count = strip.count(), first = strip.queries.first;
    const Matrix query = turned(q.read(b, h, strip.queries, near), count, q.width, near_turned, scale);
    const int64_t t = query.step;
    score(strip, key, query, q.width, scores.data());
    share(scores.data(), strip.size(), t, inverse.data(), log.data());
    strip.each([&](Run seen, int64_t row) {
      const Matrix taken{scores.data() + row * t, t}, value{values_turned.data() + seen.first, step};
      multiply(v.width, t, seen.length(), value, taken, found_turned.data(), t, row > 0);
    });
    for (int64_t row = 0; row < v.width; row++) {
      float* to = found_turned.data() + row * t;
      at::vec::map2([](Vector x, Vector y) { return x * y; }, to, to, inverse.data(), t);
    }
    turn({found_turned.data(), t}, v.width, count, found.data(), v.width);
    write<T>({found.data(), v.width}, count, v.width, out.at(b, h, first), out.step);
    std::copy_n(log.data(), count, logs + (b * q.count + h) * q.columns + first);
  }
};

// Scores (s, t) become shares, and slopes of shares slopes of scores, scaled.
C10_NOINLINE void differentiate(float* shares, float* slopes, int64_t seen, int64_t t, float scale, const float* log,
                                const float* mean) {
  for (int64_t query = 0; query < t; query += WIDTH) {
    const Vector most = Vector::loadu(log + query), middle = Vector::loadu(mean + query);
    for (int64_t at = query; at < seen * t; at += t) {
      const Vector taken = (Vector::loadu(shares + at) - most).exp_u20();
      taken.store(shares + at);
      (taken * Vector(scale) * (Vector::loadu(slopes + at) - middle)).store(slopes + at);
    }
  }
}

// One thread's part of the backward pass.
template <typename T>
struct Backward {
  Heads<T> grad, q, k, v, out, of_q, of_k, of_v;
  const float* logs;
  const Strips& strips;
  float scale;
  int64_t step = stepped(k.columns);
  Place keys{k.columns, k.width}, values{v.columns, v.width}, keys_turned{k.width, step}, near{QUERIES, q.width},
      near_turned{q.width, QUERIES}, upon{QUERIES, v.width}, upon_turned{v.width, QUERIES}, found{QUERIES, v.width},
      shares{strips.most(), QUERIES}, slopes{strips.most(), QUERIES}, log{1, QUERIES}, mean{1, QUERIES},
      by_near{QUERIES, q.width}, by_near_turned{q.width, QUERIES}, by_keys{k.columns, k.width},
      by_values{v.columns, v.width};

  void group(int64_t b, int64_t g) {
    const Run all{0, k.columns};
    const Matrix key = k.read(b, g, all, keys), value = v.read(b, g, all, values);
    turn(key, k.columns, k.width, keys_turned.data(), step);
    by_keys.clear(), by_values.clear();
    const int64_t repeat = q.count / k.count;
    for (int64_t h = g * repeat; h < (g + 1) * repeat; h++) {
      for (const Strip& strip : strips.of(b)) {
        derive(strip, b, h, key, value);
      }
    }
    write<T>({by_keys.data(), k.width}, k.columns, k.width, of_k.at(b, g, 0), of_k.step);
    write<T>({by_values.data(), v.width}, v.columns, v.width, of_v.at(b, g, 0), of_v.step);
  }

  void derive(const Strip& strip, int64_t b, int64_t h, Matrix key, Matrix value) {
    const int64_t count = strip.count(), first = strip.queries.first;
    const Matrix query = q.read(b, h, strip.queries, near), slope = grad.read(b, h, strip.queries, upon);
    const Matrix query_turned = turned(query, count, q.width, near_turned, scale);
    const Matrix slope_turned = turned(slope, count, v.width, upon_turned);
    const int64_t t = query_turned.step;
    score(strip, key, query_turned, q.width, shares.data());
    strip.each([&](Run seen, int64_t row) {
      multiply(seen.length(), t, v.width, value.from(seen.first), slope_turned, slopes.data() + row * t, t, false);
    });
    prepare(logs + (b * q.count + h) * q.columns + first, slope, out.read(b, h, strip.queries, found), count);
    differentiate(shares.data(), slopes.data(), strip.size(), t, scale, log.data(), mean.data());
    strip.each([&](Run seen, int64_t row) {
      const Matrix taken{shares.data() + row * t, t}, of_score{slopes.data() + row * t, t};
      const int64_t s = seen.length(), from = seen.first;
      multiply(s, v.width, count, taken, slope, by_values.data() + from * v.width, v.width, true);
      multiply(s, k.width, count, of_score, query, by_keys.data() + from * k.width, k.width, true);
      multiply(k.width, t, s, {keys_turned.data() + from, step}, of_score, by_near_turned.data(), t, row > 0);
    });
    turn({by_near_turned.data(), t}, q.width, count, by_near.data(), q.width);
    write<T>({by_near.data(), q.width}, count, q.width, of_q.at(b, h, first), of_q.step);
  }

  // For each query of a strip the logarithm of its sum, and the mean of the slopes of its shares, which is the product
  // of the output with its gradient.
  void prepare(const float* logs, Matrix slope, Matrix output, int64_t count) {
    log.clear(), mean.clear();
    std::copy_n(logs, count, log.data());
    for (int64_t row = 0; row < count; row++) {
      float product = 0;
#pragma omp simd reduction(+ : product)
      for (int64_t i = 0; i < v.width; i++) {
        product += slope.at(row)[i] * output.at(row)[i];
      }
      mean.data()[row] = product;
    }
  }
};

// Have all key/value heads worked on, by a worker for each thread.
template <typename Worker, typename... Parts>
void over_groups(int64_t rows, int64_t groups, const Parts&... parts) {
  at::parallel_for(0, rows * groups, 1, [&](int64_t first, int64_t last) {
    Worker worker{parts...};
    for (int64_t at = first; at < last; at++) {
      worker.group(at / groups, at % groups);
    }
    multiplied();
  });
}

Tensor side_by_side(const Tensor& x) {
  return x.stride(3) == 1 ? x : x.contiguous();
}

// Refuse what would be read past its end, or as another type.
void verify(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& seen) {
  const auto type = q.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, "attention: ", type, "; allowed: float32, bfloat16");
  TORCH_CHECK(k.scalar_type() == type && v.scalar_type() == type, "attention: queries, keys and values differ in type");
  for (const Tensor& x : {k, v}) {
    TORCH_CHECK(x.size(0) == q.size(0) && x.size(1) == k.size(1) && x.size(2) == q.size(2), "attention: ", x.sizes(),
                " beside queries ", q.sizes());
  }
  TORCH_CHECK(k.size(3) == q.size(3) && q.size(1) % k.size(1) == 0, "attention: keys ", k.sizes(), " beside queries ",
              q.sizes());
  TORCH_CHECK(!seen || (seen->scalar_type() == at::kBool && seen->dim() == 4 && seen->size(1) == 1 &&
                        (seen->size(0) == 1 || seen->size(0) == q.size(0)) && seen->size(2) == q.size(2) &&
                        seen->size(3) == q.size(2)),
              "attention: a mask ", seen ? seen->sizes() : q.sizes(), " beside queries ", q.sizes());
}

// A mask as it is read; what lays it out for a compiled network does not always keep to how it was made.
std::optional<Tensor> laid(const std::optional<Tensor>& seen) {
  return seen ? std::optional<Tensor>(seen->contiguous()) : seen;
}

// (B, H, T, width), stored as (B, T, H, width): what heads are joined from without a copy.
Tensor empty(const Tensor& like, int64_t width) {
  return at::empty({like.size(0), like.size(2), like.size(1), width}, like.options()).transpose(1, 2);
}

template <typename T>
void forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& logs,
             const Strips& strips, float scale) {
  over_groups<Forward<T>>(k.size(0), k.size(1), Heads<T>(q), Heads<T>(k), Heads<T>(v), Heads<T>(out),
                          logs.data_ptr<float>(), strips, scale);
}

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     const std::optional<Tensor>& seen, bool causal, double scale) {
  verify(q, k, v, seen);
  const auto held = laid(seen);
  Tensor out = empty(q, v.size(3)), logs = at::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(at::kFloat));
  const auto run = q.scalar_type() == at::kFloat ? forward<float> : forward<at::BFloat16>;
  run(side_by_side(q), side_by_side(k), side_by_side(v), out, logs, Strips(held, q.size(2), causal), scale);
  return {out, logs};
}

template <typename T>
void backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
              const Tensor& of_q, const Tensor& of_k, const Tensor& of_v, const Tensor& logs,
              const Strips& strips, float scale) {
  over_groups<Backward<T>>(k.size(0), k.size(1), Heads<T>(grad), Heads<T>(q), Heads<T>(k), Heads<T>(v), Heads<T>(out),
                           Heads<T>(of_q), Heads<T>(of_k), Heads<T>(of_v), logs.const_data_ptr<float>(), strips, scale);
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                      const Tensor& v, const Tensor& out, const Tensor& logs,
                                                      const std::optional<Tensor>& seen, bool causal, double scale) {
  verify(q, k, v, seen);
  TORCH_CHECK(grad.scalar_type() == q.scalar_type() && grad.sizes() == out.sizes() && logs.is_contiguous(),
              "attention: a gradient ", grad.sizes(), " of an output ", out.sizes());
  const auto held = laid(seen);
  Tensor of_q = empty(q, q.size(3)), of_k = empty(k, k.size(3)), of_v = empty(v, v.size(3));
  const auto run = q.scalar_type() == at::kFloat ? backward<float> : backward<at::BFloat16>;
  run(side_by_side(grad), side_by_side(q), side_by_side(k), side_by_side(v), side_by_side(out), of_q, of_k, of_v, logs,
      Strips(held, q.size(2), causal), scale);
  return {of_q, of_k, of_v};
}

}  // namespace

}  // namespace lit_small_lm
