"""OLMo 2 (arXiv 2501.00656): norms after the branches, and RMSNorm over all queries and all keys of a position."""

import dataclasses

from lit_small_lm.hf.decoder import COMMON, Decoder
from lit_small_lm.hf.settings import Settings
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.reordered_norm import ReorderedNorm
from lit_small_lm.plugin import Dims, Norm, NormScheme


class Olmo2(Decoder):
    """`Olmo2ForCausalLM`."""

    model_type = "olmo2"
    architecture = "Olmo2ForCausalLM"
    norms = {"mixer_path.norm": "post_attention_layernorm", "ffn_path.norm": "post_feedforward_layernorm"}
    defaults = {
        **COMMON,
        "vocab_size": 50304,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
    }

    def scheme(self, norm: Norm) -> NormScheme:
        return ReorderedNorm(norm=norm)

    def mixer(self, s: Settings, dims: Dims) -> Attention:
        return dataclasses.replace(super().mixer(s, dims), qk_norm=self.norm(s), qk_norm_over="width")
