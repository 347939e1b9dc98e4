"""The backbone: a stack of layers that is told who may look at whom. The whole forward pass is on this screen."""

import dataclasses
import itertools
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lit_small_lm.concerns import report_concerns
from lit_small_lm.context import Branch, Context, Kind
from lit_small_lm.errors import RequestError, not_known, one, shown
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.canon import CausalCanon
from lit_small_lm.nn.head import Score, capped
from lit_small_lm.nn.init import NormalInit
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.nn.positions import Rotary
from lit_small_lm.nn.residual import PreNorm
from lit_small_lm.plugin import (
    FFN,
    Canon,
    Dims,
    Embedding,
    Init,
    Linear,
    Mixer,
    NormScheme,
    Parameter,
    Positions,
    Site,
    Size,
    Spec,
    setting,
)
from lit_small_lm.roles import Stepped, parameter_role
from lit_small_lm.sharding import drawn_whole


@dataclass(frozen=True, kw_only=True)
class LayerSpec(Spec):
    """One kind of layer: a mixer, an FFN, and where Canon layers stand."""

    mixer: Mixer = Attention()
    """Mixes positions."""
    ffn: FFN = GatedMLP()
    """Transforms each position."""
    canon: Canon = CausalCanon()
    """The Canon layer put at `canon_at`."""
    canon_at: str | None = None
    """Letters of ABCD: A before the mixer, B inside it, C before the FFN, D inside it; empty: none; null: the
    backbone's."""
    positions: Positions | None = None
    """Positions of this kind of layer; null: the backbone's."""


@dataclass(frozen=True, kw_only=True)
class Kept(Spec):
    """What is left of a deeper network: every layer keeps the place it had there, and with it all that follows from it
    (kind, factors of the norm scheme, initial weights)."""

    layers: tuple[int, ...] = ()
    """Its layers that are left, by their index there from 0, in the order they run."""
    depth: int = setting(1, low=1, high=10_000, unit="layers")
    """Layers it had."""

    def refuse_depth(self, depth: int) -> None:
        """Raise RequestError unless these are `depth` different layers of the deeper network."""
        if len(self.layers) != depth:
            raise RequestError(f"backbone.kept.layers: {len(self.layers)} layers; shape.n_layers: {depth}")
        for index in self.layers:
            if not 0 <= index < self.depth or self.layers.count(index) > 1:
                raise RequestError(f"backbone.kept.layers: {index}; allowed: each of 0 to {self.depth - 1} once")


@dataclass(frozen=True, kw_only=True)
class BackboneSpec(Spec):
    """A family: one norm scheme for the stack, and kinds of layers with a pattern that tiles them to depth."""

    norm: NormScheme = PreNorm()
    """How branches join the residual stream."""
    layer: LayerSpec = LayerSpec()
    """The kind of layer that the pattern calls "layer"."""
    more_layers: dict[str, LayerSpec] = dataclasses.field(default_factory=dict)
    """Further kinds of layers, by the name the pattern calls them."""
    pattern: tuple[str, ...] = ("layer",)
    """Kinds of layers, repeated until the depth is reached."""
    first: tuple[str, ...] = ()
    """Kinds of the first layers, before the pattern begins; a shallower network has fewer of them."""
    positions: Positions = Rotary()
    """How the network knows the order of tokens."""
    canon_at: str = ""
    """Canon layers of every kind of layer that names none of its own: letters of ABCD, see `layer.canon_at`."""
    init: Init = NormalInit()
    """Initial weights by role."""
    head: Literal["tied", "untied"] = "tied"
    """Whether the output head shares the embedding's weights."""
    embedding_scale: Literal["one", "sqrt_dim"] = "one"
    """What embedded tokens are multiplied with: nothing, or the square root of their width (Gemma)."""
    logit_softcap: float | None = setting(None, above=0)
    """c: logits become c tanh(logits / c), within -c and c (Gemma 2, arXiv 2408.00118); null: as they are."""
    embedding_dropout: float = setting(0.0, low=0, below=1, unit="probability")
    """On the embedded tokens, positions included, while training."""
    z_loss: float = setting(0.0, low=0, unit="nats per squared nat")
    """Weight of the squared logarithm of the softmax's normaliser in the training loss (PaLM, arXiv 2204.02311, takes
    1e-4); 0: none."""
    kept: Kept | None = None
    """The layers that are left of a deeper network; null: this is a whole one."""

    def whole(self, dims: Dims) -> Dims:
        """The shape of the network before any layer went; what depends on depth goes by it."""
        return dims if self.kept is None else dataclasses.replace(dims, n_layers=self.kept.depth)

    def places(self, depth: int) -> Sequence[int]:
        """Which layer of the whole network each of `depth` layers is, from 0."""
        if self.kept is None:
            return range(depth)
        self.kept.refuse_depth(depth)
        return self.kept.layers

    def kinds_of_layers(self) -> dict[str, LayerSpec]:
        """Every kind of layer by name, with what it leaves to the backbone filled in."""
        kinds = {"layer": self.layer, **self.more_layers}
        return {name: self._completed(kind) for name, kind in kinds.items()}

    def _completed(self, kind: LayerSpec) -> LayerSpec:
        return dataclasses.replace(
            kind,
            positions=kind.positions or self.positions,
            canon_at=self.canon_at if kind.canon_at is None else kind.canon_at,
        )

    def layers(self, depth: int) -> list[LayerSpec]:
        """The kind of each of `depth` layers. Raises RequestError for a name in the pattern that is no kind."""
        named = self.kinds_of_layers()
        for field in ("first", "pattern"):
            for name in getattr(self, field):
                if name not in named:
                    raise not_known(f"backbone.{field}", name, named, "kind of layer")
        if not self.pattern:
            raise RequestError("backbone.pattern: () is empty; it needs at least one kind of layer")
        places = self.places(depth)
        kinds = itertools.chain(self.first, itertools.cycle(self.pattern))
        whole = list(itertools.islice(kinds, max(places, default=-1) + 1))
        return [named[whole[place]] for place in places]

    def refuse_kind(self, kind: Kind) -> None:
        """Raise RequestError if a part in use cannot honour a visibility of this kind; its kind of layer is named."""
        for layer, parts in self.kinds_of_layers().items():
            for part in (parts.mixer, *((parts.canon,) if parts.canon_at else ())):
                if kind not in part.kinds:
                    name, honoured = type(part).__name__, ", ".join(part.kinds)
                    where = "backbone.layer" if layer == "layer" else f"backbone.more_layers.{layer}"
                    what = f"{name} does not go with {one(kind)} objective"
                    raise RequestError(f"{where}: {what}; it honours: {honoured}")

    def report_concerns(self) -> None:
        """Warn of what norm scheme and init do not go well with; a concern of level "error" is a RequestError."""
        report_concerns(self, "backbone", "norm", "init")


class Layer(nn.Module):
    """A mixer and an FFN, joined to the carry by the norm scheme; the same class whatever the scheme."""

    def __init__(self, spec: LayerSpec, scheme: NormScheme, site: Site) -> None:
        super().__init__()
        self.mixer_path = scheme.build(site.at("mixer"))
        self.canon_a = site.tap("A", site.dim)
        self.mixer = spec.mixer.build(site.at("mixer"))
        self.ffn_path = scheme.build(site.at("ffn"))
        self.canon_c = site.tap("C", site.dim)
        self.ffn = spec.ffn.build(site.at("ffn"))
        for branch, place in ((self.mixer, "mixer"), (self.ffn, "ffn")):
            for module in branch.modules():
                if isinstance(module, Linear):
                    module.place_in(site.layer, lambda role, there=site.at(place): scheme.branch_init(there, role))
        self.activation_checkpointing: Literal["off", "layers"] = "off"
        """"layers": the backward pass runs the layer again instead of keeping what it computed."""

    def forward(self, carry, ctx: Context):
        if self.activation_checkpointing == "off" or not torch.is_grad_enabled():
            return self.run(carry, ctx)
        before = ctx.trace.copy()
        contexts = itertools.chain([ctx], (dataclasses.replace(ctx, trace=before.copy()) for _ in itertools.count()))
        return checkpoint(lambda carry: self.run(carry, next(contexts)), carry, use_reentrant=False)

    def run(self, carry, ctx: Context):
        """The mixer's path and the FFN's."""
        carry = self.mixer_path(carry, Branch(lambda h: self.mixer(self.canon_a(h, ctx), ctx), ctx))
        return self.ffn_path(carry, Branch(lambda h: self.ffn(self.canon_c(h, ctx), ctx), ctx))


class Backbone(nn.Module):
    """tokens -> logits, or the negative log-likelihood of targets.

    Args:
        spec: the family.
        dims: the resolved shape.
        vocab_size: ids the tokenizer has.

    Raises:
        RequestError: parts that do not go together, naming both.
    """

    def __init__(self, spec: BackboneSpec, dims: Dims, vocab_size: int) -> None:
        super().__init__()
        self.spec, self.dims = spec, dims
        self.embed = Embedding(vocab_size, dims.dim, role="embedding")
        self.embed_positions = spec.positions.embed(dims.dim)
        self.open = spec.norm.open(dims.dim)
        self.layers = nn.ModuleList(
            build_layer(spec, kind, dims, i) for i, kind in enumerate(spec.layers(dims.n_layers))
        )
        self.close = spec.norm.close(dims.dim)
        self.score = Score(spec.logit_softcap, spec.z_loss)
        self.head = None if spec.head == "tied" else Linear(dims.dim, vocab_size, role="head")
        self.init_weights()

    def forward(
        self, tokens: Tensor, ctx: Context, targets: Tensor | None = None, scored: Tensor | None = None
    ) -> Tensor:
        """tokens (B, T) -> logits (B, T, V), or nats (B, T) of `targets` (B, T).

        With `scored` (M,), indices into the B*T positions, only those get logits (M, V) or nats (M,).
        """
        x = self.embed(tokens)  # (B, T, D)
        if self.spec.embedding_scale == "sqrt_dim":
            x = x * math.sqrt(self.dims.dim)
        if self.embed_positions is not None:
            x = self.embed_positions(x, ctx)
        x = F.dropout(x, self.spec.embedding_dropout, self.training)
        carry = self.open(x)
        for layer in self.layers:
            carry = layer(carry, ctx)
        x = self.close(carry)
        if ctx.cache is not None:
            ctx.cache.advance(tokens.shape[1])
        if scored is not None:
            x = x.flatten(0, 1)[scored]  # (M, D)
        weight = self.embed.weight if self.head is None else self.head.weight
        if targets is None:
            return capped(F.linear(x, weight), self.spec.logit_softcap)
        return self.score(x.flatten(0, -2), weight, targets, ctx)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw every weight anew, on the CPU and one module at a time, the same ones on every device and however the
        network is sharded; also after `to_empty` on a network built on the meta device."""
        for module in self.modules():
            if next(module.parameters(recurse=False), None) is not None:
                with drawn_whole(module):
                    self._draw(module)
            if isinstance(module, Stepped):
                module.reset_moving()

    def _draw(self, module: nn.Module) -> None:
        if not isinstance(module, (Linear, Embedding)):
            _reset(module)
            return
        dims = self.spec.whole(self.dims)
        std = self.spec.init.std_at(module.role, dims, module.weight.shape[-1], module.layer)
        if not module.weight.is_meta:  # there is no storage to draw into, and finding that out takes torch a second
            module.draw(std)

    def named_roles(self) -> Iterator[Parameter]:
        """Every parameter with its role and what Init says of it."""
        init, dims = self.spec.init, self.spec.whole(self.dims)
        for prefix, module in self.named_modules():
            for name, tensor in module.named_parameters(prefix, recurse=False):
                role = parameter_role(module, name, tensor)
                scales = init.decays(role, dims), init.lr_scale(role, dims), init.eps_scale(role, dims)
                yield Parameter(name, tensor, role, *scales)

    def limit(self) -> int | None:
        """The longest document that has positions, or None."""
        return self.spec.positions.limit()


def check_fit(spec: BackboneSpec, dims: Dims) -> Backbone:
    """A network of this family and shape with a vocabulary of one, without storage: what does not fit is found here,
    before anything is built. Warns as `warn_of_depth` does.

    Raises:
        RequestError: parts that do not go together, or not with these widths, naming both.
    """
    with torch.device("meta"):
        net = Backbone(spec, dims, vocab_size=1)
    warn_of_depth(spec, dims.n_layers)
    return net


def warn_of_depth(spec: BackboneSpec, depth: int) -> None:
    """Warn of kinds of layers that a network of this depth ends before: it is then another family than it is named."""
    depth = depth if spec.kept is None else spec.kept.depth
    named, reached = spec.first + spec.pattern, [*spec.first, *spec.pattern * depth][:depth]
    for name in dict.fromkeys(named):
        if name not in reached:
            place = named.index(name) + 1
            text = f"backbone.pattern: layer {place} is the first of kind {name!r}; shape.n_layers: {depth}"
            warnings.warn(f"{text}, so there are none of them", stacklevel=4)


def size_of(spec: BackboneSpec, dims: Dims, vocab_size: int) -> Size:
    """How many parameters a network has, counted on one without storage; `planning.counts.size` is quicker where it is
    deep."""
    with torch.device("meta"):
        net = Backbone(spec, dims, vocab_size)
    counts = Counter()
    for parameter in net.named_roles():
        counts[parameter.role] += parameter.tensor.numel()
    outside = sum(counts[role] for role in ("embedding", "positions", "head"))
    return Size(counts.total(), counts.total() - outside)


def _reset(module: nn.Module) -> None:
    """Let a module draw its own parameters anew."""
    if not callable(getattr(module, "reset_parameters", None)):
        raise RequestError(f"{type(module).__name__} has parameters of its own; it needs a reset_parameters() method")
    module.reset_parameters()


def build_layer(spec: BackboneSpec, kind: LayerSpec, dims: Dims, index: int) -> Layer:
    """Layer `index` of a network, which is of this kind. Raises RequestError for Canon letters without a place.

    The only place where layers learn which one they are: in a pruned network, the one they were in the whole.
    """
    letters = set(kind.canon_at)
    if not letters <= set("ABCD") or len(letters) != len(kind.canon_at):
        raise RequestError(f"canon_at: {shown(kind.canon_at)!r}; allowed: letters of ABCD, each at most once")
    if kind.positions != spec.positions and kind.positions.embed(dims.dim) is not None:
        name = type(kind.positions).__name__
        raise RequestError(f"layer.positions: {name} adds to the embedding; give it as backbone.positions")
    place = spec.places(dims.n_layers)[index]
    site = Site(spec.whole(dims), place, positions=kind.positions, canon=kind.canon, canon_at=kind.canon_at)
    layer = Layer(kind, spec.norm, site)
    unclaimed = letters - site.claimed
    if unclaimed:
        parts = f"{type(kind.mixer).__name__} with {type(kind.ffn).__name__}"
        raise RequestError(f"canon_at: {''.join(sorted(unclaimed))} has no place in a layer of {parts}")
    return layer
