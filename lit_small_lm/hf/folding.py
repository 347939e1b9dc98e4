"""Norm schemes that are plainer ones once they are trained, for classes that know no other.

LayerNorm Scaling (arXiv 2502.05795) goes into the gains of its norms, and what is left is Pre-LN: a branch reads
factor * norm(x) * gain, so a gain of factor * gain does the same. Exact but for the rounding of one product; where
training has moved the factor into the gains from the start, nothing is left to do. ProRes is the scheme inside it.
"""

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from lit_small_lm.backbone import BackboneSpec
from lit_small_lm.hf.public import Unfit
from lit_small_lm.hf.tiling import tiled
from lit_small_lm.nn.norms import LayerNorm, RMSNorm
from lit_small_lm.nn.prores import ProRes
from lit_small_lm.nn.residual import LayerNormScaling, PreNorm
from lit_small_lm.plugin import Dims, Site


def folded(
    backbone: BackboneSpec, dims: Dims, state: Mapping[str, Tensor]
) -> tuple[BackboneSpec, Mapping[str, Tensor]]:
    """A backbone and its state dict without ProRes and with the factors of LayerNorm Scaling in the gains; any other as
    it is.

    Raises:
        Unfit: the factors are not on norms that have a gain.
    """
    scheme = backbone.norm
    if isinstance(scheme, ProRes):
        inner = {name.replace("_path.path.", "_path.", 1): tensor for name, tensor in state.items()}
        return folded(dataclasses.replace(backbone, norm=scheme.scheme), dims, inner)
    if not isinstance(scheme, LayerNormScaling):
        return alone(backbone, dims), state
    if scheme.factor_on == "branch":
        raise Unfit("norm.factor_on branch: a factor on a branch's output is no gain")
    if not isinstance(scheme.norm, (RMSNorm, LayerNorm)) or scheme.norm.gain == "none":
        raise Unfit(f"norm.norm {type(scheme.norm).__name__} has no gain that a factor could go into")
    plain = dataclasses.replace(backbone, norm=PreNorm(norm=dataclasses.replace(scheme.norm, start=1.0)))
    if scheme.factor_on == "gain":
        return alone(plain, dims), state
    return alone(plain, dims), {**state, **_scaled(backbone, scheme, dims, state)}


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


def _scaled(
    backbone: BackboneSpec, scheme: LayerNormScaling, dims: Dims, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The gains and biases of every branch's norm times its factor."""
    added = 1 if isinstance(scheme.norm, RMSNorm) and scheme.norm.gain == "1+w" else 0
    found, whole = {}, backbone.whole(dims)
    for layer, number in enumerate(backbone.places(dims.n_layers)):
        for place in ("mixer", "ffn"):
            factor, norm = scheme.factor(Site(whole, number, place)), f"layers.{layer}.{place}_path.norm"
            found[f"{norm}.weight"] = (state[f"{norm}.weight"] + added) * factor - added
            if f"{norm}.bias" in state:
                found[f"{norm}.bias"] = state[f"{norm}.bias"] * factor
    return found
