"""Norm schemes that are plainer ones once they are trained, for classes that know no other.

The factors of LayerNorm Scaling (arXiv 2502.05795) and CompleteP (arXiv 2505.01618) go into weights, and what is left
is Pre-LN: a branch that reads factor * norm(x) * gain has a gain of factor * gain, one whose output is multiplied has
that factor in the last of its maps. Exact but for the rounding of one product; where training has moved the factor into
the gains from the start, nothing is left to do. ProRes is the scheme inside it.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from lit_small_lm.backbone import BackboneSpec
from lit_small_lm.hf.public import Unfit
from lit_small_lm.hf.tiling import tiled
from lit_small_lm.nn.completep import CompletePNorm
from lit_small_lm.nn.norms import LayerNorm, RMSNorm
from lit_small_lm.nn.prores import ProRes
from lit_small_lm.nn.residual import LayerNormScaling, PreNorm
from lit_small_lm.plugin import Dims, Norm, Site

LAST = re.compile(r"\b(o_proj|down_proj)\.(weight|bias)$")
"""Names of the last map of a branch."""


def folded(
    backbone: BackboneSpec, dims: Dims, state: Mapping[str, Tensor]
) -> tuple[BackboneSpec, Mapping[str, Tensor]]:
    """A backbone and its state dict without ProRes and with constant factors in the weights; any other as it is.

    Raises:
        Unfit: the factors are on norms that have no gain.
    """
    scheme = backbone.norm
    if isinstance(scheme, ProRes):
        inner = {name.replace("_path.path.", "_path.", 1): tensor for name, tensor in state.items()}
        return folded(dataclasses.replace(backbone, norm=scheme.scheme), dims, inner)
    if isinstance(scheme, LayerNormScaling):
        state = _unscaled(backbone, scheme, dims, state)
        norm = scheme.norm if scheme.factor_on == "branch" else scheme.norm.starting_at(1.0)
    elif isinstance(scheme, CompletePNorm):
        norm, state = scheme.norm, _undivided(backbone, scheme, dims, state)
    else:
        return alone(backbone, dims), state
    return alone(dataclasses.replace(backbone, norm=PreNorm(norm=norm)), dims), state


def _unscaled(
    backbone: BackboneSpec, scheme: LayerNormScaling, dims: Dims, state: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Weights without LayerNorm Scaling."""
    if scheme.factor_on == "gain":
        return state
    for layer, site in _branches(backbone, dims):
        factor = scheme.factor(site)
        if scheme.factor_on == "branch":
            state = _with_outputs(state, f"{layer}.{site.place}.", factor)
        else:
            state = _with_gains(state, f"{layer}.{site.place}_path.norm", factor, scheme.norm)
    return state


def _undivided(
    backbone: BackboneSpec, scheme: CompletePNorm, dims: Dims, state: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Weights without CompleteP's divisors, and the final norm under the name that it has in Pre-LN."""
    state = {name.replace("close.norm.", "close.", 1): tensor for name, tensor in state.items()}
    for layer, site in _branches(backbone, dims):
        state = _with_outputs(state, f"{layer}.{site.place}.", 1 / scheme.divisor(site))
    return _with_gains(state, "close", scheme.base_dim / dims.dim, scheme.norm)


def alone(backbone: BackboneSpec, dims: Dims) -> BackboneSpec:
    """The layers that are left of a deeper network as a family of their own, for classes that know no other.

    It is the same network as long as no part depends on its place. No part of a public class does, and what is written
    is compared.
    """
    if backbone.kept is None:
        return backbone
    named = backbone.kinds_of_layers()
    kinds = [next(name for name, each in named.items() if each == kind) for kind in backbone.layers(dims.n_layers)]
    return dataclasses.replace(backbone, kept=None, **tiled(kinds, {"layer": backbone.layer, **backbone.more_layers}))


def _branches(backbone: BackboneSpec, dims: Dims) -> Iterator[tuple[str, Site]]:
    """Every branch: the name of its layer, and its site in the whole network."""
    whole = backbone.whole(dims)
    for layer, number in enumerate(backbone.places(dims.n_layers)):
        yield from ((f"layers.{layer}", Site(whole, number, place)) for place in ("mixer", "ffn"))


def _with_gains(state: Mapping[str, Tensor], name: str, factor: float, norm: Norm) -> dict[str, Tensor]:
    """The gain and the bias of the norm of this name times a factor. Raises Unfit: it has no gain."""
    if not isinstance(norm, (RMSNorm, LayerNorm)) or norm.gain == "none":
        raise Unfit(f"norm.norm {type(norm).__name__} has no gain that a factor could go into")
    added = 1 if isinstance(norm, RMSNorm) and norm.gain == "1+w" else 0
    found = {**state, f"{name}.weight": (state[f"{name}.weight"] + added) * factor - added}
    if f"{name}.bias" in state:
        found[f"{name}.bias"] = state[f"{name}.bias"] * factor
    return found


def _with_outputs(state: Mapping[str, Tensor], branch: str, factor: float) -> dict[str, Tensor]:
    """The last map of a branch, and its bias, times a factor; that of each expert where there are several."""
    return {
        name: tensor * factor if name.startswith(branch) and LAST.search(name) else tensor
        for name, tensor in state.items()
    }
