// Rows of attention cut into strips of queries, and which keys each of them needs.
#pragma once

#include "matrix.h"

#include <optional>
#include <utility>
#include <vector>

namespace lit_small_lm {
namespace {

constexpr int64_t QUERIES = 64;  // of a strip; with 32 and with 128 it takes 3 and 20 % longer
constexpr int64_t KEYS = 64;     // of a block

struct Run {
  int64_t first, last;

  int64_t length() const { return last - first; }
};

// Keys of a block that some queries of a strip see and others do not, and the row where they have their scores.
struct Mixed {
  Run keys;
  int64_t row;
};

// Queries, and the keys that any of them sees: by whole blocks, since oneDNN makes code for each size of a product.
struct Strip {
  Run queries;
  std::vector<Run> keys;
  std::vector<Mixed> mixed;
  Rows<const bool> seen;  // (S, T): whether a key is seen by a query; none: all are that `causal` allows
  bool causal;            // no query sees what is behind it; a mask says so itself

  int64_t count() const { return queries.length(); }

  int64_t size() const {
    int64_t total = 0;
    for (const Run& run : keys) {
      total += run.length();
    }
    return total;
  }

  // Call f(keys, row) for each run of keys, which have their scores from this row on.
  template <typename F>
  void each(F f) const {
    int64_t row = 0;
    for (const Run& run : keys) {
      f(run, row);
      row += run.length();
    }
  }

  // Look at the mask of a block of keys, and take it if any of them is seen.
  void look(Run block) {
    bool any = false, all = true;
    for (int64_t key = block.first; key < block.last; key++) {
      const bool* row = seen.at(key, queries.first);
      for (int64_t query = 0; query < count(); query++) {
        any |= row[query], all &= row[query];
      }
    }
    if (!any) {
      return;
    }
    if (!all) {
      mixed.push_back({block, size()});
    }
    if (!keys.empty() && keys.back().last == block.first) {
      keys.back().last = block.last;
    } else {
      keys.push_back(block);
    }
  }
};

// The strips of a row with so many columns.
std::vector<Strip> strips_of(Rows<const bool> seen, int64_t columns, bool causal) {
  std::vector<Strip> found;
  for (int64_t first = 0; first < columns; first += QUERIES) {
    const Run queries{first, std::min(first + QUERIES, columns)};
    const int64_t end = causal ? queries.last : columns;
    Strip strip{queries, {}, {}, seen, causal};
    if (!seen.data) {
      strip.keys.push_back({0, end});
    }
    for (int64_t key = 0; seen.data && key < end; key += KEYS) {
      strip.look({key, std::min(key + KEYS, end)});
    }
    if (strip.keys.empty()) {  // nothing is seen: as many keys as any, of which that is known
      strip.mixed.push_back({{0, std::min(KEYS, end)}, 0});
      strip.keys.push_back(strip.mixed.back().keys);
    }
    found.push_back(std::move(strip));
  }
  return found;
}

// The strips of all rows; where one row stands for all, of that.
class Strips {
 public:
  Strips(const std::optional<Tensor>& seen, int64_t columns, bool causal) {
    const int64_t rows = seen ? seen->size(0) : 1;
    for (int64_t b = 0; b < rows; b++) {
      const Rows<const bool> mask{seen ? seen->const_data_ptr<bool>() + b * columns * columns : nullptr, columns};
      rows_.push_back(strips_of(mask, columns, causal));
    }
  }

  const std::vector<Strip>& of(int64_t b) const { return rows_[rows_.size() > 1 ? b : 0]; }

  // The largest number of keys.
  int64_t most() const {
    int64_t found = 0;
    for (const auto& row : rows_) {
      for (const Strip& strip : row) {
        found = std::max(found, strip.size());
      }
    }
    return found;
  }

 private:
  std::vector<std::vector<Strip>> rows_;
};

// Between rows of keys that are turned: not a power of two, of which few fit into a cache, and one for many widths.
inline int64_t stepped(int64_t columns) {
  return (columns + KEYS - 1) / KEYS * KEYS + WIDTH;
}

}  // namespace
}  // namespace lit_small_lm
