"""BERT (arXiv 1810.04805), for counting: norms after each sum, learned positions, attention both ways.

Its vectors of sentence types and its pooler are no part of a backbone; they are counted beside it.
"""

from collections.abc import Sequence
from typing import Any

from lit_small_lm.backbone import BackboneSpec, LayerSpec
from lit_small_lm.errors import RequestError
from lit_small_lm.hf.decoder import WIDEST
from lit_small_lm.hf.family import Family
from lit_small_lm.hf.names import Entry
from lit_small_lm.hf.public import Model, Unfit
from lit_small_lm.hf.settings import Settings
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.init import NormalInit
from lit_small_lm.nn.mlp import MLP
from lit_small_lm.nn.norms import LayerNorm
from lit_small_lm.nn.positions import Learned
from lit_small_lm.nn.residual import PostNorm
from lit_small_lm.shapes import FixedShape


class Bert(Family):
    """`BertModel`, without a head."""

    model_type = "bert"
    architecture = "BertModel"
    prefix = "bert."
    defaults = {
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
    }
    fixed = {"is_decoder": False, "position_embedding_type": "absolute"}

    def model(self, s: Settings) -> Model:
        dim, n_heads = s.whole("hidden_size", high=WIDEST), s.whole("num_attention_heads", high=2**16)
        if dim % n_heads:
            raise s.refused("num_attention_heads", f"a divisor of hidden_size, {dim}")
        shape = FixedShape(
            dim=dim,
            n_layers=s.whole("num_hidden_layers", high=10_000),
            n_heads=n_heads,
            n_kv_heads=n_heads,
            head_dim=dim // n_heads,
            hidden=s.whole("intermediate_size", high=2**24),
        )
        types = s.whole("type_vocab_size", low=0)
        return Model(
            backbone=self.backbone(s),
            shape=shape,
            vocab_size=s.whole("vocab_size"),
            extras={"pooler": dim * dim + dim, "sentence types": types * dim},
            bidirectional=True,
            max_length=s.whole("max_position_embeddings"),
        )

    def backbone(self, s: Settings) -> BackboneSpec:
        """The stack."""
        norm = LayerNorm(eps=s.number("layer_norm_eps", above=0))
        dropout = s.number("hidden_dropout_prob", low=0, below=1)
        attention_dropout = s.number("attention_probs_dropout_prob", low=0, below=1)
        return BackboneSpec(
            norm=PostNorm(norm=norm, embedding_norm=norm),
            layer=LayerSpec(
                mixer=Attention(shift="bias", dropout=dropout, attention_dropout=attention_dropout),
                ffn=MLP(activation=s.activation("hidden_act"), shift="bias", dropout=dropout),
            ),
            positions=Learned(length=s.whole("max_position_embeddings")),
            init=NormalInit(std_dev=s.number("initializer_range", above=0)),
            embedding_dropout=dropout,
        )

    def names(self, model: Model) -> Sequence[Entry]:
        raise RequestError("model_type bert: its configuration is read for counting; its weights are not")

    def config(self, model: Model) -> dict[str, Any]:
        raise Unfit("BertModel has no language-model head")
