"""`check` finds what is broken in a part of a network: each breaks one contract, and the error names both."""

import dataclasses
import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from lit_small_lm.context import Kind, Visibility
from lit_small_lm.nn.neighbours import NeighbourSum, gathered
from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.nn.residual import PrePath
from lit_small_lm.plugin import (
    FFN,
    Canon,
    Init,
    Linear,
    Mixer,
    Norm,
    NormScheme,
    Shape,
)
from lit_small_lm.shapes import FixedShape
from lit_small_lm.testing import check


class Map(nn.Module):
    """A mixer or FFN module from a function of the projected input."""

    def __init__(self, dim, function):
        super().__init__()
        self.proj, self.function = Linear(dim, dim, role="out"), function

    def forward(self, h, ctx):
        return self.function(self.proj(h), ctx)


# ------------------------------------------------------------------------------------------------------------- mixers
@dataclass(frozen=True, kw_only=True)
class BrokenSeesAll(Mixer):
    """Averages the whole row."""

    def build(self, site):
        return Map(site.dim, lambda h, ctx: h + h.mean(1, keepdim=True))


@dataclass(frozen=True, kw_only=True)
class BrokenSeesOtherDocuments(Mixer):
    """A causal running sum that does not stop where a document begins."""

    def build(self, site):
        return Map(site.dim, lambda h, ctx: h.cumsum(1))


@dataclass(frozen=True, kw_only=True)
class BrokenCountsRows(Mixer):
    """No value leaks, but the index in the row does: a document is not scored as it would be alone."""

    def build(self, site):
        return Map(site.dim, lambda h, ctx: h * torch.arange(1, h.shape[1] + 1).unsqueeze(-1))


@dataclass(frozen=True, kw_only=True)
class BrokenForgets(Mixer):
    """Adds the left neighbour and takes it from this call alone, never from the cache."""

    def build(self, site):
        def mix(h, ctx):
            index, exists = ctx.visibility.neighbour(1)
            inside = exists & (torch.arange(h.shape[1]) > 0)
            return h + h.gather(1, index.unsqueeze(-1).expand_as(h)) * inside.unsqueeze(-1)

        return Map(site.dim, mix)


@dataclass(frozen=True, kw_only=True)
class BrokenAtRandom(Mixer):
    """Draws noise in evaluation, too."""

    def build(self, site):
        return Map(site.dim, lambda h, ctx: h + 1e-9 * torch.rand_like(h))


@dataclass(frozen=True, kw_only=True)
class BrokenHonoursNothing(Mixer):
    """Has no visibility it could be trained under."""

    kinds: ClassVar[tuple[Kind, ...]] = ()

    def build(self, site):
        return Map(site.dim, lambda h, ctx: h)


# --------------------------------------------------------------------------------------------------------------- FFNs
@dataclass(frozen=True, kw_only=True)
class BrokenStopsGradient(FFN):
    """Its weights are never learned."""

    def build(self, site):
        return Map(site.dim, lambda h, ctx: h.detach())


@dataclass(frozen=True, kw_only=True)
class BrokenRoot(FFN):
    """The gradient of a root at zero is infinite."""

    def build(self, site):
        return Map(site.dim, lambda h, ctx: (h - h).abs().sqrt())


@dataclass(frozen=True, kw_only=True)
class BrokenNarrows(FFN):
    """Hands back one channel less."""

    def build(self, site):
        return Map(site.dim, lambda h, ctx: h[..., 1:])


# ------------------------------------------------------------------------------------------------------- norm schemes
class BufferPath(nn.Module):
    def __init__(self, dim, persistent):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))
        self.register_buffer("factor", torch.ones(()), persistent=persistent)

    def reset_parameters(self):
        nn.init.ones_(self.gain)

    def forward(self, x, branch):
        return x + branch(x * self.gain * self.factor)


class RefilledPath(BufferPath):
    def reset_parameters(self):
        super().reset_parameters()
        self.factor.fill_(1)


@dataclass(frozen=True, kw_only=True)
class BrokenBuffer(NormScheme):
    """Its factor is a persistent buffer, lost when built on the meta device."""

    def build(self, site):
        return BufferPath(site.dim, persistent=True)

    def close(self, dim):
        return nn.Identity()


@dataclass(frozen=True, kw_only=True)
class BrokenHiddenBuffer(NormScheme):
    """Its factor is kept out of the state dict, and lost all the same."""

    def build(self, site):
        return BufferPath(site.dim, persistent=False)

    def close(self, dim):
        return nn.Identity()


@dataclass(frozen=True, kw_only=True)
class BrokenSavedBuffer(NormScheme):
    """Fills its buffer again, but saves it."""

    def build(self, site):
        return RefilledPath(site.dim, persistent=True)

    def close(self, dim):
        return nn.Identity()


class KeptPath(BufferPath):
    def reset_parameters(self):
        pass


@dataclass(frozen=True, kw_only=True)
class BrokenKeepsWeights(NormScheme):
    """Does not draw its weights in reset_parameters."""

    def build(self, site):
        return KeptPath(site.dim, persistent=False)

    def close(self, dim):
        return nn.Identity()


class NoResetPath(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x, branch):
        return x + self.gain * branch(x)


@dataclass(frozen=True, kw_only=True)
class BrokenNoReset(NormScheme):
    """Has weights and no way to draw them."""

    def build(self, site):
        return NoResetPath(site.dim)

    def close(self, dim):
        return nn.Identity()


# ----------------------------------------------------------------------------------------------------- other net parts
@dataclass(frozen=True, kw_only=True)
class BrokenLooksRight(Canon):
    """A convolution that reaches one position to the right."""

    def build(self, site, width):
        class Right(NeighbourSum):
            def forward(self, h, ctx):
                return h + super().forward(h.roll(-1, dims=1), ctx)

        return Right(width, 3, site.address)


@dataclass(frozen=True, kw_only=True)
class BrokenStaysInItsHalf(Canon):
    """A convolution whose noisy positions see the noisy ones of the block before."""

    kinds: ClassVar[tuple[Kind, ...]] = ("causal", "block", "doubled")

    def build(self, site, width):
        class InHalves(NeighbourSum):
            def forward(self, h, ctx):
                if ctx.visibility.kind != "doubled":
                    return h + super().forward(h, ctx)
                view = Visibility.rows(h[..., 0], ctx.visibility.doc_ids, "causal")
                halves = dataclasses.replace(view, positions=ctx.visibility.positions)
                return h + gathered(h, self.weight, halves)

        return InHalves(width, 3, site.address)


@dataclass(frozen=True, kw_only=True)
class BrokenShapeNorm(Norm):
    """Changes the shape."""

    def build(self, dim):
        return nn.Flatten(0, 1)


@dataclass(frozen=True, kw_only=True)
class BrokenInit(Init):
    """No deviation for the head."""

    def std(self, role, dims):
        return float("nan") if role == "head" else 0.02


@dataclass(frozen=True, kw_only=True)
class BrokenShape(Shape):
    """Heads that do not divide."""

    def resolve(self, sizing=None):
        return dataclasses.replace(FixedShape(dim=16, n_layers=1, n_heads=4).resolve(), n_kv_heads=3)


@pytest.mark.parametrize(
    ("spec", "contract"),
    [
        (BrokenSeesAll(), "never sees later tokens"),
        (BrokenSeesOtherDocuments(), "keeps packed documents apart: causal: outputs of document 1 have a gradient"),
        (BrokenCountsRows(), "keeps packed documents apart: causal: document 1 of a packed row against"),
        (BrokenForgets(), "decodes with a cache as without"),
        (BrokenAtRandom(), "answers the same twice"),
        (BrokenHonoursNothing(), "learns with finite gradients: backbone.layer: BrokenHonoursNothing does"),
        (BrokenStopsGradient(), "learns with finite gradients: causal: layers.0.ffn_path.norm.weight gets no gradient"),
        (BrokenRoot(), "learns with finite gradients: causal: the gradient of"),
        (BrokenNarrows(), "learns with finite gradients"),
        (BrokenBuffer(), "is rebuilt from the meta device: init_weights() does not draw layers.0.mixer_path.factor"),
        (BrokenHiddenBuffer(), "is rebuilt from the meta device: logits after to_empty"),
        (BrokenSavedBuffer(), "saves parameters and nothing else: the state dict holds derived tensors"),
        (BrokenKeepsWeights(), "is rebuilt from the meta device: init_weights() does not draw layers.0."),
        (BrokenNoReset(), "learns with finite gradients: NoResetPath has parameters of its own; it needs a reset"),
        (BrokenLooksRight(), "never sees later tokens"),
        (BrokenStaysInItsHalf(), "trains blocks as it decodes them: noisy logits, decoded in blocks of 3: off by"),
        (BrokenShapeNorm(), "keeps the shape of its input"),
        (BrokenInit(), "has a rule for every role: the deviation of role head"),
        (BrokenShape(), "resolves to widths that go together"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_broken_spec_is_named_with_its_contract(spec, contract):
    with pytest.raises(AssertionError, match=f"^{type(spec).__name__}: {re.escape(contract)}"):
        check(spec)


@dataclass(frozen=True, kw_only=True)
class SoundScheme(NormScheme):
    """The counter-example: nothing is wrong with it."""

    norm: Norm = RMSNorm()
    """The operator."""

    def build(self, site):
        return PrePath(self.norm.build(site.dim), factor=0.5)

    def close(self, dim):
        return self.norm.build(dim)


def test_a_sound_user_spec_passes():
    check(SoundScheme())


def test_check_leaves_the_random_state_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    check(SoundScheme())
    assert torch.equal(torch.rand(3), wanted)
