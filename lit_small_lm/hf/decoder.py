"""What Llama-shaped public classes share: RMSNorm, rotary grouped-query attention and a gated MLP, layer upon layer.

A class of its own differs by its defaults, by its kinds of layers and by a few names.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from lit_small_lm.backbone import BackboneSpec, LayerSpec
from lit_small_lm.hf import entries
from lit_small_lm.hf.family import Family
from lit_small_lm.hf.names import Entry
from lit_small_lm.hf.public import Model, Unfit
from lit_small_lm.hf.rope import amplitude_of, read_rope, write_rope
from lit_small_lm.hf.settings import ACTIVATION_NAMES, Settings
from lit_small_lm.hf.tiling import tiled
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.init import NormalInit
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.nn.positions import Rotary
from lit_small_lm.nn.residual import PreNorm
from lit_small_lm.plugin import FFN, Dims, Mixer, Norm, NormScheme, Positions, Spec
from lit_small_lm.shapes import FixedShape

P = TypeVar("P", bound=Spec)
COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "is_causal": True,
}
"""Defaults that most of the classes have. `is_causal` is in none of them by name, but all of them honour it."""
WIDEST = 2**20
FOREIGN = 10
"""How many faults a part of another kind counts for."""


def part(value: Spec, kind: type[P], what: str) -> P:
    """A part of the kind that a class has. Raises Unfit if it is of another."""
    if not isinstance(value, kind):
        raise Unfit(f"{what} {type(value).__name__} is not {kind.__name__}", FOREIGN)
    return value


class Decoder(Family):
    """A Llama-shaped class."""

    theta: ClassVar[float] = 10000.0
    """The class's default base of rotary positions."""
    norms: ClassVar[Mapping[str, str]] = {
        "mixer_path.norm": "input_layernorm",
        "ffn_path.norm": "post_attention_layernorm",
    }
    """Our norms of a layer -> theirs."""
    last_norm: ClassVar[str] = "model.norm"
    embedding: ClassVar[str] = "model.embed_tokens"
    head: ClassVar[str] = "lm_head"
    eps: ClassVar[str] = "rms_norm_eps"
    """What config.json calls the norms' eps."""

    # -------------------------------------------------------------------------------------------------------- reading
    def model(self, s: Settings) -> Model:
        shape = self.shape(s)
        names, kinds = self.layers(s, shape.resolve())
        backbone = BackboneSpec(
            norm=self.scheme(self.norm(s)),
            **tiled(names, kinds),
            positions=self.positions(s),
            init=NormalInit(std_dev=s.number("initializer_range", above=0)),
            head="tied" if s.flag("tie_word_embeddings") else "untied",
        )
        return Model(
            backbone=self.finished(s, backbone),
            shape=shape,
            vocab_size=s.whole("vocab_size"),
            bidirectional=self.both_ways(s),
            max_length=s.whole("max_position_embeddings"),
        )

    def shape(self, s: Settings) -> FixedShape:
        """Depth and widths."""
        dim, n_heads = s.whole("hidden_size", high=WIDEST), s.whole("num_attention_heads", high=2**16)
        shape = FixedShape(
            dim=dim,
            n_layers=s.whole("num_hidden_layers", high=10_000),
            n_heads=n_heads,
            n_kv_heads=self.kv_heads(s, n_heads),
            head_dim=self.head_dim(s, dim, n_heads),
            hidden=self.hidden(s),
        )
        if n_heads % shape.n_kv_heads:
            raise s.refused("num_key_value_heads", f"a divisor of num_attention_heads, {n_heads}")
        return shape

    def kv_heads(self, s: Settings, n_heads: int) -> int:
        """Key/value heads; null means as many as heads."""
        return n_heads if s.value("num_key_value_heads") is None else s.whole("num_key_value_heads", high=2**16)

    def head_dim(self, s: Settings, dim: int, n_heads: int) -> int:
        """Width of a head; null or left out: the width's share."""
        if s.given.get("head_dim", s.defaults.get("head_dim")) is not None:
            return s.whole("head_dim", high=2**16)
        if dim % n_heads:
            raise s.refused("num_attention_heads", f"a divisor of hidden_size, {dim}")
        return dim // n_heads

    def hidden(self, s: Settings) -> int:
        """Hidden width of the MLP."""
        return s.whole("intermediate_size", high=2**24)

    def both_ways(self, s: Settings) -> bool:
        """Whether attention looks both ways."""
        return not s.flag("is_causal")

    def norm(self, s: Settings) -> Norm:
        """The norm of the stream."""
        return RMSNorm(eps=s.number(self.eps, above=0))

    def scheme(self, norm: Norm) -> NormScheme:
        """How branches join the stream."""
        return PreNorm(norm=norm)

    def positions(self, s: Settings) -> Positions:
        """The backbone's positions."""
        return read_rope(s, self.theta).positions

    def mixer(self, s: Settings, dims: Dims) -> Attention:
        """The attention that all layers share; it may have biases where the class has a field that says so."""
        return Attention(
            shift="bias" if "attention_bias" in self.defaults and s.flag("attention_bias") else "none",
            attention_dropout=s.number("attention_dropout", low=0, below=1),
            scale=read_rope(s, self.theta).scale(dims.head_dim),
        )

    def ffn(self, s: Settings, dims: Dims) -> FFN:
        """The dense FFN."""
        return GatedMLP(activation=s.activation("hidden_act"))

    def layers(self, s: Settings, dims: Dims) -> tuple[list[str], dict[str, LayerSpec]]:
        """The kind of each layer, and every kind by name."""
        return ["layer"] * dims.n_layers, {"layer": LayerSpec(mixer=self.mixer(s, dims), ffn=self.ffn(s, dims))}

    def finished(self, s: Settings, backbone: BackboneSpec) -> BackboneSpec:
        """The backbone with what this class has beside the usual."""
        return backbone

    # ---------------------------------------------------------------------------------------------------------- names
    def names(self, model: Model) -> Sequence[Entry]:
        dims, backbone = model.shape.resolve(), model.backbone
        found = [Entry("embed.weight", (f"{self.embedding}.weight",))]
        for number, kind in enumerate(backbone.layers(dims.n_layers)):
            ours, theirs = f"layers.{number}", f"{self.prefix}layers.{number}"
            for own, public in self.norms.items():
                found += entries.norm(f"{ours}.{own}", f"{theirs}.{public}", backbone.norm.norm)
            found += self.mixer_names(ours, theirs, kind.mixer, dims)
            found += self.ffn_names(ours, theirs, kind.ffn, dims)
        found += entries.norm(self.closing(backbone), self.last_norm, backbone.norm.norm)
        return found + ([] if backbone.head == "tied" else [Entry("head.weight", (f"{self.head}.weight",))])

    def closing(self, backbone: BackboneSpec) -> str:
        """Our name of the final norm."""
        return "close"

    def mixer_names(self, ours: str, theirs: str, mixer: Mixer, dims: Dims) -> list[Entry]:
        """The entries of a layer's mixer."""
        return entries.attention(f"{ours}.mixer", f"{theirs}.self_attn", part(mixer, Attention, "mixer"), dims)

    def ffn_names(self, ours: str, theirs: str, ffn: FFN, dims: Dims) -> list[Entry]:
        """The entries of a layer's FFN."""
        spec = part(ffn, GatedMLP, "ffn")
        return entries.gated(f"{ours}.ffn", f"{theirs}.mlp", spec, dims.groups_of(dims.hidden))

    # -------------------------------------------------------------------------------------------------------- writing
    def config(self, model: Model) -> dict[str, Any]:
        dims, backbone = model.shape.resolve(), model.backbone
        kinds = backbone.layers(dims.n_layers)
        written = {
            "vocab_size": model.vocab_size,
            "hidden_size": dims.dim,
            "num_hidden_layers": dims.n_layers,
            "num_attention_heads": dims.n_heads,
            "num_key_value_heads": dims.n_kv_heads,
            "head_dim": dims.head_dim,
            "intermediate_size": dims.hidden,
            self.eps: self.eps_of(backbone),
            "tie_word_embeddings": backbone.head == "tied",
            "max_position_embeddings": model.max_length or self.defaults["max_position_embeddings"],
            **self.positions_config(model, kinds),
            **self.mixer_config(model, kinds),
            **self.ffn_config(model, kinds),
        }
        if model.bidirectional and "is_causal" not in self.fixed:
            written["is_causal"] = False
        if isinstance(backbone.init, NormalInit):
            written["initializer_range"] = backbone.init.std_dev
        return written

    def eps_of(self, backbone: BackboneSpec) -> float:
        """The eps of the backbone's norm."""
        scheme = part(backbone.norm, type(self.scheme(RMSNorm())), "norm")
        return part(scheme.norm, RMSNorm, "norm.norm").eps

    def positions_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        """The fields of rotary positions; a scale of the scores is taken for YaRN's."""
        places = [kind.positions for kind in kinds] + [model.backbone.positions]
        rotary = next((positions for positions in places if isinstance(positions, Rotary)), None)
        rotary = part(places[-1], Rotary, "positions") if rotary is None else rotary
        scales = [kind.mixer.scale for kind in kinds if isinstance(kind.mixer, Attention) and kind.mixer.scale]
        return write_rope(rotary, amplitude_of(scales[0], model.shape.resolve().head_dim) if scales else 1.0)

    def mixer_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        """The fields of attention."""
        mixer = part(kinds[0].mixer, Attention, "mixer")
        found = {"attention_bias": mixer.shift == "bias"} if "attention_bias" in self.defaults else {}
        return {**found, "attention_dropout": mixer.attention_dropout}

    def ffn_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        """The fields of the dense MLP."""
        return {"hidden_act": ACTIVATION_NAMES[part(kinds[0].ffn, GatedMLP, "ffn").activation]}
