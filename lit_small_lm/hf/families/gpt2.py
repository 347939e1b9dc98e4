"""GPT-2 (Radford et al. 2019): LayerNorm before each branch, learned positions, biases everywhere, plain MLP.

Its projections are stored (in, out), queries, keys and values in one.
"""

from collections.abc import Sequence
from typing import Any

from lit_small_lm.backbone import BackboneSpec, LayerSpec
from lit_small_lm.hf import entries
from lit_small_lm.hf.decoder import WIDEST, part
from lit_small_lm.hf.family import Family
from lit_small_lm.hf.names import Entry, Fused, Transposed
from lit_small_lm.hf.public import Model
from lit_small_lm.hf.settings import ACTIVATION_NAMES, Settings
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.init import ScaledInit
from lit_small_lm.nn.mlp import MLP
from lit_small_lm.nn.norms import LayerNorm
from lit_small_lm.nn.positions import Learned
from lit_small_lm.nn.residual import PreNorm
from lit_small_lm.plugin import Dims
from lit_small_lm.shapes import FixedShape

HEAD_DIM = 64


class GPT2(Family):
    """`GPT2LMHeadModel`."""

    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    prefix = "transformer."
    derived = (".attn.bias", ".attn.masked_bias")
    defaults = {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "is_causal": True,
    }
    fixed = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}

    def model(self, s: Settings) -> Model:
        length = s.whole("n_positions")
        backbone = BackboneSpec(
            norm=PreNorm(norm=LayerNorm(eps=s.number("layer_norm_epsilon", above=0))),
            layer=self.layer(s),
            positions=Learned(length=length),
            init=ScaledInit(std_dev=s.number("initializer_range", above=0)),
            head="tied" if s.flag("tie_word_embeddings") else "untied",
            embedding_dropout=s.number("embd_pdrop", low=0, below=1),
        )
        looks_both_ways = not s.flag("is_causal")
        return Model(backbone, self.shape(s), s.whole("vocab_size"), bidirectional=looks_both_ways, max_length=length)

    def shape(self, s: Settings) -> FixedShape:
        """Depth and widths; the MLP is four times as wide unless the file says otherwise."""
        dim = s.whole("n_embd", high=WIDEST)
        n_heads = self.heads(s, dim)
        return FixedShape(
            dim=dim,
            n_layers=s.whole("n_layer", high=10_000),
            n_heads=n_heads,
            n_kv_heads=n_heads,
            head_dim=dim // n_heads,
            hidden=4 * dim if s.value("n_inner") is None else s.whole("n_inner", high=2**24),
        )

    def heads(self, s: Settings, dim: int) -> int:
        """Heads of a layer. Where the file has none and the default does not divide the width, heads are 64 wide, as in
        all released sizes."""
        n_heads = s.whole("n_head", high=2**16)
        if dim % n_heads and "n_head" not in s.given and dim % HEAD_DIM == 0:
            return dim // HEAD_DIM
        if dim % n_heads:
            raise s.refused("n_head", f"a divisor of n_embd, {dim}")
        return n_heads

    def layer(self, s: Settings) -> LayerSpec:
        """The one kind of layer."""
        dropout = s.number("resid_pdrop", low=0, below=1)
        attention_dropout = s.number("attn_pdrop", low=0, below=1)
        return LayerSpec(
            mixer=Attention(shift="bias", dropout=dropout, attention_dropout=attention_dropout),
            ffn=MLP(activation=s.activation("activation_function"), shift="bias", dropout=dropout),
        )

    def names(self, model: Model) -> Sequence[Entry]:
        dims, backbone = model.shape.resolve(), model.backbone
        found = [Entry("embed.weight", ("transformer.wte.weight",))]
        found.append(Entry("embed_positions.table.weight", ("transformer.wpe.weight",)))
        for number in range(dims.n_layers):
            found += self.layer_names(f"layers.{number}", f"transformer.h.{number}", backbone, dims)
        found += entries.norm("close", "transformer.ln_f", backbone.norm.norm)
        return found + ([] if backbone.head == "tied" else [Entry("head.weight", ("lm_head.weight",))])

    def layer_names(self, ours: str, theirs: str, backbone: BackboneSpec, dims: Dims) -> list[Entry]:
        """The entries of one layer."""
        fused = Fused((dims.dim,) * 3, entries.heads(dims))
        found = entries.norm(f"{ours}.mixer_path.norm", f"{theirs}.ln_1", backbone.norm.norm)
        found += entries.norm(f"{ours}.ffn_path.norm", f"{theirs}.ln_2", backbone.norm.norm)
        found += entries.linear(f"{ours}.mixer.qkv_proj", (f"{theirs}.attn.c_attn",), True, fused)
        found += entries.linear(f"{ours}.mixer.o_proj", (f"{theirs}.attn.c_proj",), True)
        found += entries.plain(f"{ours}.ffn", f"{theirs}.mlp", MLP(shift="bias"), ("c_fc", "c_proj"))
        return [_stored_transposed(entry) for entry in found]

    def config(self, model: Model) -> dict[str, Any]:
        dims, backbone = model.shape.resolve(), model.backbone
        kind = backbone.layers(dims.n_layers)[0]
        mixer, ffn = part(kind.mixer, Attention, "mixer"), part(kind.ffn, MLP, "ffn")
        scheme = part(backbone.norm, PreNorm, "norm")
        length = part(backbone.positions, Learned, "positions").length
        written = {
            "vocab_size": model.vocab_size,
            "n_positions": length,
            "n_embd": dims.dim,
            "n_layer": dims.n_layers,
            "n_head": dims.n_heads,
            "n_inner": dims.hidden,
            "activation_function": ACTIVATION_NAMES[ffn.activation],
            "resid_pdrop": ffn.dropout,
            "embd_pdrop": backbone.embedding_dropout,
            "attn_pdrop": mixer.attention_dropout,
            "layer_norm_epsilon": part(scheme.norm, LayerNorm, "norm.norm").eps,
            "tie_word_embeddings": backbone.head == "tied",
            "is_causal": not model.bidirectional,
        }
        if isinstance(backbone.init, ScaledInit):
            written["initializer_range"] = backbone.init.std_dev
        return written


def _stored_transposed(entry: Entry) -> Entry:
    """Weights of projections are stored (in, out); norms and biases have no second axis."""
    matrix = entry.ours.endswith("_proj.weight")
    return Entry(entry.ours, entry.theirs, Transposed(entry.join)) if matrix else entry
