"""Every contract of the package: what a shape, norm scheme, mixer, objective, sampler or source has to offer.

To extend the package, subclass one kind below as a frozen dataclass; nothing else has to be registered.
A Spec is a value (config, help text, saved record); what it builds is a plain `nn.Module`.

A plug-in may say which version of these contracts it was written for, in a line of its own at the top of its file:
`LIT_SMALL_LM_PLUGIN_API = 1`. With another version (`PLUGIN_API`) it is not loaded, and both versions are named.
"""

import abc
import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lit_small_lm.batch import Batch, Decoding, Frame, Query, Specials
from lit_small_lm.concerns import Concern
from lit_small_lm.context import Branch, Context, Kind, Visibility  # noqa: F401
from lit_small_lm.corpora import (  # noqa: F401
    Component,
    Document,
    Encoder,
    Source,
    SourcePart,
    Tokenizer,
)
from lit_small_lm.errors import RequestError
from lit_small_lm.roles import Embedding, Linear  # noqa: F401  (offered here to authors of plug-ins)
from lit_small_lm.spec import PLUGIN_API, Spec, find, kinds, known, setting  # noqa: F401

EVERY_KIND: tuple[Kind, ...] = ("causal", "annealed", "bidirectional", "block", "doubled")
"""What a part declares that takes masks and neighbours from the Visibility and so honours whatever it says."""
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Dims:
    """A resolved shape: every width a network is built from."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden: int

    def groups_of(self, width: int) -> int:
        """Into how many groups `width` channels of a fused projection fall: one a key/value head, if they divide it.

        Parts that follow it can be cut by tensor parallelism wherever attention can.
        """
        return self.n_kv_heads if width % self.n_kv_heads == 0 else 1


class Size(NamedTuple):
    """How many parameters a network has."""

    total: int
    non_embedding: int
    """Without the tables of tokens and positions and without the output head."""


Sizing = Callable[[Dims], Size]
"""What a network of some family and vocabulary would have at these widths."""


class Budget(NamedTuple):
    """A number of parameters that a shape was asked for."""

    params: int
    count: Literal["total", "non_embedding"]
    """Which number of a `Size` it is."""


@dataclass(frozen=True, kw_only=True)
class Shape(Spec):
    """Depth and widths of a network, tried with any family."""

    @abc.abstractmethod
    def resolve(self, sizing: Sizing | None = None) -> Dims:
        """The widths, where they depend on it those at which `sizing` comes nearest to what is wanted.

        Raises:
            RequestError: they do not go together, naming both values; or `sizing` is needed and None.
        """

    def budget(self) -> Budget | None:
        """The parameters its widths were chosen for; None where widths were asked for."""
        return None


@dataclass(frozen=True)
class Site:
    """All a part may know of its surroundings."""

    dims: Dims
    """The resolved shape."""
    layer: int
    """Index of the layer, from 0."""
    place: str = ""
    """Where in the layer: "mixer", "ffn", or "canon_A" to "canon_D"."""
    positions: "Positions | None" = None
    """How this layer's mixer knows positions."""
    canon: "Canon | None" = None
    """The Canon layer to put at the letters of `canon_at`."""
    canon_at: str = ""
    """Letters of the Canon positions asked for."""
    claimed: set[str] = dataclasses.field(default_factory=set, compare=False)
    """Letters that a part has offered a place for; a letter of `canon_at` nobody claims is an error."""

    @property
    def dim(self) -> int:
        return self.dims.dim

    @property
    def n_layers(self) -> int:
        return self.dims.n_layers

    @property
    def address(self) -> Hashable:
        """The key of this place in the decoding cache."""
        return (self.layer, self.place)

    def at(self, place: str) -> "Site":
        """The same surroundings at another place of the layer."""
        return dataclasses.replace(self, place=place)

    def tap(self, letter: str, width: int) -> nn.Module:
        """The Canon layer for position `letter` over `width` channels: module(h, ctx) -> h, the identity if not asked.

        A and C are claimed by the layer, B by the mixer, D by the FFN.
        """
        self.claimed.add(letter)
        if self.canon is None or letter not in self.canon_at:
            return _Untapped()
        return self.canon.build(self.at(f"canon_{letter}"), width)


class _Untapped(nn.Module):
    """The identity; called without PyTorch's way around hooks, which takes longer than some of a layer's operations."""

    def __call__(self, h: Tensor, ctx: Context) -> Tensor:
        return h

    forward = __call__


@dataclass(frozen=True, kw_only=True)
class Norm(Spec):
    """A normalisation operator."""

    @abc.abstractmethod
    def build(self, dim: int) -> nn.Module:
        """module(h) -> h of the same shape, over the last dimension of size `dim`."""

    def starting_at(self, gain: float) -> "Norm":
        """The same operator with a learned gain that starts at `gain`. Raises RequestError: it has none."""
        raise RequestError(f"{type(self).__name__} has no gain that could start at {gain:.3g}")


@dataclass(frozen=True, kw_only=True)
class NormScheme(Spec):
    """How a branch joins the residual stream; owns the stream from the embedding to the final norm."""

    requires: ClassVar[tuple[Concern, ...]] = ()
    """What must be there: Concern("warmup", why), or the class of a Spec."""
    conflicts: ClassVar[tuple[Concern, ...]] = ()
    """What should not be there: Concern("ScaledInit", why)."""

    def open(self, dim: int) -> nn.Module:
        """module(x) -> carry: what travels between layers, opaque to them; the stream itself by default."""
        return nn.Identity()

    @abc.abstractmethod
    def build(self, site: Site) -> nn.Module:
        """module(carry, branch) -> carry, for the branch at `site` (`site.place` is "mixer" or "ffn").

        `branch` is a `Branch`: branch(h) -> h; `branch.ctx` is the context of this forward pass.
        """

    @abc.abstractmethod
    def close(self, dim: int) -> nn.Module:
        """module(carry) -> x, the input of the output head, final norm included."""

    def branch_init(self, site: Site, role: str) -> float:
        """A factor on the initial standard deviation of the branch's weights of this role ("out", "down", "qkv").

        Role "v" is asked for beside "qkv", for the values alone; both factors apply to them.
        """
        return 1.0

    def ramp(self, n_layers: int) -> int:
        """Optimizer steps after which the network no longer depends on `ctx.step`; 0: it never does."""
        return 0


@dataclass(frozen=True, kw_only=True)
class Positions(Spec):
    """How the network knows the order of tokens; either hook may do nothing."""

    def embed(self, dim: int) -> nn.Module | None:
        """module(x, ctx) -> x, applied once to the embedded tokens."""
        return None

    def rotate(self, head_dim: int) -> nn.Module | None:
        """module(q, k, ctx) -> (q, k), applied to queries (B, H, T, K) and keys (B, G, T, K) of each attention."""
        return None

    @abc.abstractmethod
    def limit(self) -> int | None:
        """The longest document that has positions, or None."""


@dataclass(frozen=True, kw_only=True)
class RotaryScaling(Spec):
    """A change of rotary frequencies that lets a model read longer texts than it was pre-trained on."""

    @abc.abstractmethod
    def frequencies(self, plain: Tensor) -> Tensor:
        """Angles a position (K/2,), highest first -> the changed ones."""


@dataclass(frozen=True, kw_only=True)
class Init(Spec):
    """Initial values and optimizer hints by role; parts without a role (norms, Canon) keep their own."""

    requires: ClassVar[tuple[Concern, ...]] = ()
    """What must be there, as with a norm scheme."""
    conflicts: ClassVar[tuple[Concern, ...]] = ()
    """What should not be there."""

    @abc.abstractmethod
    def std(self, role: str, dims: Dims) -> float:
        """Standard deviation of the normal distribution that weights of this role start from."""

    def std_at(self, role: str, dims: Dims, fan_in: int, layer: int | None) -> float:
        """The same for one weight, where more than its role decides: the inputs of each of its outputs, and its layer
        (from 0; None outside the layers)."""
        return self.std(role, dims)

    def decays(self, role: str, dims: Dims) -> float:
        """A factor on weight decay, 1 or True for all of it; norms, biases and embeddings are exempt (0)."""
        return role not in ("embedding", "positions", "norm", "bias")

    def lr_scale(self, role: str, dims: Dims) -> float:
        """A factor on the learning rate of weights of this role."""
        return 1.0

    def eps_scale(self, role: str, dims: Dims) -> float:
        """A factor on what Adam adds to the root of the second moment of weights of this role."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Mixer(Spec):
    """Mixes positions: attention, short convolution."""

    kinds: ClassVar[tuple[Kind, ...]] = ("causal",)
    """The visibilities it honours; declare more where they hold."""

    @abc.abstractmethod
    def build(self, site: Site) -> nn.Module:
        """module(h, ctx) -> h, (B, T, D) -> (B, T, D). Claims Canon position B with `site.tap("B", width)`."""


class Routing(NamedTuple):
    """Which experts each position goes through."""

    experts: Tensor
    """(M, k) ids of the experts, no id twice in a row."""
    weights: Tensor
    """(M, k) what each expert's output is multiplied with."""


@dataclass(frozen=True, kw_only=True)
class Router(Spec):
    """Chooses the experts of a mixture for each position."""

    top_k: int = setting(2, low=1, unit="experts")
    """Experts each position goes through."""

    @abc.abstractmethod
    def build(self, site: Site, n_experts: int) -> nn.Module:
        """module(h, ctx) -> Routing, for the positions h (M, D) of the Visibility, row by row: M is B T.

        While training it records losses and metrics in `ctx.trace`; padding (document -1) counts in none of them.
        """


@dataclass(frozen=True, kw_only=True)
class FFN(Spec):
    """Transforms each position by itself."""

    @abc.abstractmethod
    def build(self, site: Site) -> nn.Module:
        """module(h, ctx) -> h, (B, T, D) -> (B, T, D). Claims Canon position D with `site.tap("D", width)`."""


@dataclass(frozen=True, kw_only=True)
class Canon(Spec):
    """A light mix of neighbouring positions, placed at A, B, C or D of a layer."""

    kinds: ClassVar[tuple[Kind, ...]] = ("causal",)
    """The visibilities it honours; declare more where they hold."""

    @abc.abstractmethod
    def build(self, site: Site, width: int) -> nn.Module:
        """module(h, ctx) -> h, (B, T, width) -> (B, T, width); `site.address` keys its decoding memory."""


Net = Callable[..., Tensor]
"""The network's one signature, `net(tokens, ctx, targets=None, scored=None)`: logits (B, T, V), or the negative
log-likelihood of each target in nats. What objectives and samplers may ask of it."""


@dataclass(frozen=True, kw_only=True)
class Objective(Spec):
    """Turns a batch into a question for the network."""

    kind: ClassVar[Kind]
    """The visibility it trains under; one that `decoding` names where rows are too short to need it."""
    bound: ClassVar[Literal["exact", "upper"]]
    """Whether its loss is the exact negative log-likelihood or an upper bound of it."""

    @abc.abstractmethod
    def query(self, batch: Batch, key: tuple[int, int]) -> Query:
        """A pure function of the batch and key = (seed, step); noise depends on key and `batch.slots` only."""

    @abc.abstractmethod
    def sampler(self) -> "Sampler":
        """The sampler this objective's models are decoded with unless another is asked for."""

    def view(self, tokens: Tensor, doc_ids: Tensor | None = None, start: int = 0) -> Visibility:
        """How its networks see plain rows of text (B, T), whose positions count from `start`."""
        asked = self.decoding()
        return Visibility.rows(tokens, doc_ids, asked.kinds[0], start, asked.block_size)

    def decoding(self) -> Decoding:
        """How samplers may ask its networks; under the visibility it trains under by default."""
        return Decoding((self.kind,))


@dataclass(frozen=True, kw_only=True)
class Noise(Spec):
    """A noise schedule of a diffusion objective, time t in [0, 1]."""

    @abc.abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The share of tokens left unmasked at time t."""

    @abc.abstractmethod
    def weight(self, t: Tensor) -> Tensor:
        """The weight of a masked token's loss at time t."""


@dataclass(frozen=True, kw_only=True)
class Sampler(Spec):
    """Draws text from a network."""

    kinds: ClassVar[tuple[Kind, ...]] = ("causal",)
    """The visibilities it can ask a network under."""
    needs: ClassVar[Literal["one", "all"]] = "one"
    """How many of them the network has to answer under."""

    @abc.abstractmethod
    def frames(
        self, net: Net, prompt: Tensor, n: int, key: int, specials: Specials, decoding: Decoding = Decoding()
    ) -> Iterator[Frame]:
        """Extend `prompt` (B, P) by up to `n` tokens, and fill where it holds the mask's id.

        Shorter prompts of a batch are padded on the left with `specials.pad`. Draws are a function of `key` and of row
        and position; no padding or mask is drawn, and no token that was given changes.
        """


class Parameter(NamedTuple):
    """A parameter with what Init says of its role."""

    name: str
    tensor: nn.Parameter
    role: str
    decay: float
    """A factor on weight decay; 0: none."""
    lr_scale: float
    eps_scale: float


@dataclass(frozen=True, kw_only=True)
class Optim(Spec):
    """An optimizer. Its `lr` is the base rate that schedules multiply."""

    lr: float = setting(1e-3, above=0, unit="per step")
    """Base learning rate, reached after warm-up."""

    @abc.abstractmethod
    def build(self, parameters: Sequence[Parameter], fused: bool) -> torch.optim.Optimizer:
        """One optimizer over all parameters; every group carries `lr_scale`. `fused`: a fused kernel may be used."""
