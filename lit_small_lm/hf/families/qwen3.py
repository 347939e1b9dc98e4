"""Qwen 3 (arXiv 2505.09388): RMSNorm on each head's queries and keys instead of Qwen 2's biases."""

import dataclasses

from lit_small_lm.hf.families.qwen2 import Qwen2
from lit_small_lm.hf.settings import Settings
from lit_small_lm.nn.attention import Attention
from lit_small_lm.plugin import Dims


class Qwen3(Qwen2):
    """`Qwen3ForCausalLM`: heads of 128 whatever the width, unless the file says otherwise."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    defaults = {**Qwen2.defaults, "head_dim": 128, "attention_bias": False}

    def mixer(self, s: Settings, dims: Dims) -> Attention:
        plain = super(Qwen2, self).mixer(s, dims)  # without the biases of Qwen 2
        return dataclasses.replace(plain, qk_norm=self.norm(s))
