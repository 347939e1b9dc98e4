// The operators that `kernels/attention.py`, `kernels/head.py` and `products.py` declare; one source, since the headers
// of PyTorch take most of the time that it takes to compile.

#include "attention.h"
#include "head.h"
#include "products.h"

#include <torch/library.h>

TORCH_LIBRARY_IMPL(lit_small_lm, CPU, library) {
  library.impl("attention", lit_small_lm::attention);
  library.impl("attention_backward", lit_small_lm::attention_backward);
  library.impl("nll_and_gradients", lit_small_lm::nll_and_gradients);
  library.impl("product", lit_small_lm::product);
  library.impl("product_by_weight", lit_small_lm::product_by_weight);
}
