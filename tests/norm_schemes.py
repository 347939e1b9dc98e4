"""Every norm scheme that is shipped, in each of its forms, for tests of all of them; read with `runpy`."""

from lit_small_lm.plugins.admin import Admin
from lit_small_lm.plugins.centred_canon import CentredCanon
from lit_small_lm.plugins.layer_scale import LayerScale
from lit_small_lm.plugins.sandwich_norm import SandwichNorm
from lit_small_lm.plugins.skip_init import ReZero, SkipInit

from lit_small_lm.backbone import BackboneSpec, LayerSpec
from lit_small_lm.nn.attention_residuals import AttentionResiduals
from lit_small_lm.nn.completep import CompletePNorm
from lit_small_lm.nn.deep_norm import DeepNorm
from lit_small_lm.nn.gpas import GPAS
from lit_small_lm.nn.mix_norm import MixNorm
from lit_small_lm.nn.parallel_norm import ParallelNorm
from lit_small_lm.nn.peri_norm import PeriNorm
from lit_small_lm.nn.pointwise_norms import Derf, DyT
from lit_small_lm.nn.prores import ProRes
from lit_small_lm.nn.reordered_norm import ReorderedNorm
from lit_small_lm.nn.residual import LayerNormScaling, PostNorm, PreNorm

SCHEMES = {
    "pre": PreNorm(),
    "pre, DyT": PreNorm(norm=DyT()),
    "post": PostNorm(),
    "scaling": LayerNormScaling(),
    "scaling, Derf": LayerNormScaling(norm=Derf()),
    "scaling by branch, in the gain": LayerNormScaling(factor_on="gain", index="branch"),
    "scaling after the branch": LayerNormScaling(factor_on="branch"),
    "peri": PeriNorm(),
    "reordered": ReorderedNorm(),
    "parallel": ParallelNorm(),
    "deep": DeepNorm(),
    "mix": MixNorm(share=0.5),
    "prores": ProRes(scheme=PreNorm(), steps=10),
    "gpas": GPAS(),
    "attention residuals": AttentionResiduals(),
    "attention residuals, in blocks": AttentionResiduals(branches_a_source=3),
    "completep": CompletePNorm(base_dim=8, base_layers=1),
    "layer scale": LayerScale(),
    "skip init": SkipInit(),
    "rezero": ReZero(start=0.5),
    "sandwich": SandwichNorm(),
    "admin": Admin(),
}
FAMILIES = {
    **{name: BackboneSpec(norm=scheme) for name, scheme in SCHEMES.items()},
    "centred canon": BackboneSpec(layer=LayerSpec(canon=CentredCanon()), canon_at="ABCD"),
}
"""A network of each, and one of the plug-in that is no norm scheme."""
