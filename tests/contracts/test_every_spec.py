"""Every known Spec, and some of their less usual settings, keeps the contracts of its kind."""

import dataclasses
from pathlib import Path

import pytest

import lit_small_lm
from lit_small_lm.backbone import BackboneSpec, LayerSpec
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.data.tokenizer import BPE, Ids, Pretrained
from lit_small_lm.discovery import discover
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.attention_residuals import AttentionResiduals
from lit_small_lm.nn.canon import CausalCanon
from lit_small_lm.nn.completep import CompletePInit, CompletePNorm
from lit_small_lm.nn.deep_norm import DeepNorm
from lit_small_lm.nn.init import FanInInit, NormalInit, ScaledInit
from lit_small_lm.nn.mix_norm import MixNorm
from lit_small_lm.nn.mla import MLA
from lit_small_lm.nn.mlp import MLP, GatedMLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.norms import LayerNorm, RMSNorm
from lit_small_lm.nn.parallel_norm import ParallelNorm
from lit_small_lm.nn.peri_norm import PeriNorm
from lit_small_lm.nn.pointwise_norms import Derf, DyT
from lit_small_lm.nn.positions import Learned, NoPositions, Rotary
from lit_small_lm.nn.prores import ProRes
from lit_small_lm.nn.residual import LayerNormScaling, PostNorm
from lit_small_lm.nn.rotary_scaling import LinearScaling, Llama3Scaling
from lit_small_lm.nn.routers import SigmoidRouter, SoftmaxRouter
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.objectives.noise import CosineNoise
from lit_small_lm.plugin import Dims, Source, kinds, known
from lit_small_lm.samplers.ancestral import Ancestral
from lit_small_lm.samplers.autoregressive import Autoregressive
from lit_small_lm.samplers.entropy_bound import EntropyBound
from lit_small_lm.samplers.low_confidence import LowConfidence
from lit_small_lm.samplers.remasking import Remasking
from lit_small_lm.samplers.speculative import SelfSpeculation
from lit_small_lm.shapes import BudgetShape, FixedShape
from lit_small_lm.testing import check
from lit_small_lm.training.muon import Muon
from lit_small_lm.training.optim import AdamW


def has_defaults(cls):
    """Whether every field has one; others are tried by hand below."""
    return all(
        field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        for field in dataclasses.fields(cls)
    )


discover()
HERE = Path(lit_small_lm.__file__).parent
SHIPPED = [
    cls
    for kind in (*kinds().values(), BackboneSpec, LayerSpec)
    for cls in known(kind).values()
    if cls.__module__.startswith("lit_small_lm.")
    and has_defaults(cls)
    and not issubclass(cls, (Source, Pretrained, Ids))  # they need files, or take no text
]


@pytest.mark.parametrize("cls", SHIPPED, ids=lambda cls: cls.__name__)
def test_default_of_every_known_spec(cls):
    check(cls())


def test_the_list_is_not_empty():
    assert {"NextToken", "PreNorm", "Attention", "Autoregressive", "AdamW", "BPE"} <= {cls.__name__ for cls in SHIPPED}


@pytest.mark.slow  # reads the whole standard library twice
def test_default_source():
    check(TextFiles())


@pytest.mark.parametrize(
    "spec",
    [
        TextFiles(path=str(HERE)),
        TextFiles(path=str(HERE / "plugin.py")),
        Attention(window=3),
        Attention(shift="bias", dropout=0.2, attention_dropout=0.3),
        Attention(shift="qkv", qk_norm=RMSNorm(gain="1+w"), scale=0.3),
        Attention(qk_norm=RMSNorm(), qk_norm_over="width", window=4),
        Attention(qk_norm=RMSNorm(), v_norm=RMSNorm(), value_residual="learned"),
        MLA(q_rank=6, kv_rank=5, nope_dim=3, rope_dim=4, value_dim=7, scale=0.3, norm=LayerNorm()),
        LayerSpec(mixer=MLA(q_rank=6, kv_rank=5), canon_at="ABCD", positions=NoPositions()),
        ShortConv(kernel=5, dropout=0.2),
        ShortConv(kernel=1),
        CausalCanon(kernel=1),
        CausalCanon(kernel=7),
        MLP(activation="relu2", shift="bias", dropout=0.2),
        MLP(activation="gelu"),
        GatedMLP(activation="gelu_tanh", dropout=0.2),
        GatedMLP(activation="relu"),
        GatedMLP(shift="bias", canon_span="hidden"),
        SoftmaxRouter(top_k=1, balance_loss=0.0, z_loss=0.0),
        SoftmaxRouter(top_k=3, normalise="chosen"),
        SigmoidRouter(top_k=2, n_groups=2, top_groups=1, scale=2.5, normalise="none"),
        SigmoidRouter(top_k=2, bias_rate=0.0, balance_loss=0.0),
        MoE(expert=GatedMLP(), router=SoftmaxRouter()),
        MoE(expert=GatedMLP(shift="bias"), router=SigmoidRouter(top_k=2), n_experts=3, expert_hidden=5),
        MoE(expert=MLP(dropout=0.2), router=SoftmaxRouter(), shared_hidden=6, shared_gate="sigmoid"),
        LayerSpec(ffn=MoE(expert=GatedMLP(), router=SigmoidRouter(top_k=3), n_experts=4), canon_at="ABC"),
        LayerNorm(shift="none"),
        RMSNorm(gain="1+w", start=0.5),
        RMSNorm(gain="none"),
        LayerNorm(gain="none"),
        Learned(length=7),
        Rotary(share=0.5, base=100.0),
        Rotary(scaling=Llama3Scaling(original_length=8)),
        Rotary(scaling=LinearScaling()),
        ScaledInit(std_dev=0.1),
        FanInInit(gain=0.5),
        CompletePInit(base_dim=4, base_layers=1, alpha=0.5),
        LayerNormScaling(norm=LayerNorm()),
        LayerNormScaling(factor_on="gain", index="branch", power=1.0),
        LayerNormScaling(factor_on="branch"),
        ProRes(scheme=PostNorm()),
        MixNorm(share=0.5, norm=DyT()),
        AttentionResiduals(branches_a_source=3),
        PostNorm(norm=LayerNorm(shift="none")),
        PostNorm(embedding_norm=LayerNorm()),
        ParallelNorm(),
        LayerSpec(canon_at="ABCD", positions=NoPositions()),
        LayerSpec(canon_at="BD", mixer=ShortConv(), ffn=MLP(shift="bias")),
        LayerSpec(canon_at="AC", mixer=Attention(window=2), canon=CausalCanon(kernel=2)),
        BackboneSpec(head="untied", init=ScaledInit(), norm=PostNorm()),
        BackboneSpec(head="untied", init=CompletePInit(), norm=CompletePNorm(norm=Derf())),
        BackboneSpec(norm=DeepNorm(norm=LayerNorm()), layer=LayerSpec(canon_at="ABCD")),
        BackboneSpec(z_loss=0.01, embedding_dropout=0.2, norm=PeriNorm(embedding_norm=LayerNorm())),
        BackboneSpec(
            norm=LayerNormScaling(),
            layer=LayerSpec(canon_at="ABCD"),
            more_layers={"conv": LayerSpec(mixer=ShortConv()), "local": LayerSpec(mixer=Attention(window=4))},
            pattern=("conv", "local", "layer"),
        ),
        BackboneSpec(
            norm=LayerNormScaling(norm=LayerNorm()),
            layer=LayerSpec(mixer=Attention(shift="bias"), ffn=MLP(shift="bias"), canon_at="D"),
            positions=Learned(length=12),
        ),
        BackboneSpec(
            positions=NoPositions(), init=NormalInit(std_dev=0.5), norm=LayerNormScaling(norm=RMSNorm(eps=0.1))
        ),
        FixedShape(dim=24, n_heads=4, n_kv_heads=2, head_dim=10, hidden=7),
        BudgetShape(params=1_000_000, n_layers=5, rest="hidden", hidden_multiple=8),
        BudgetShape(
            params=90_000, count="non_embedding", n_layers=3, head_dim=6, queries_per_kv_head=2, hidden_ratio=1.5
        ),
        Autoregressive(temperature=0.0),
        Autoregressive(temperature=0.7, top_k=3, top_p=0.9),
        Ancestral(steps=1, temperature=0.0),
        Ancestral(steps=5, noise=CosineNoise(), block_size=2),
        EntropyBound(bound=1.0, top_k=2),
        LowConfidence(tokens=3, by="margin", top_p=0.5),
        Remasking(steps=5, remasked=1.0, bounded_by="share"),
        SelfSpeculation(drafted=2, temperature=0.5),
        AdamW(lr=0.1, weight_decay=0.0),
        Muon(lr_ratio=20.0, update_size="original"),
        BPE(vocab_size=300),
    ],
    ids=lambda spec: repr(spec)[:90],
)
def test_other_settings(spec):
    check(spec)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("head_dim", [4, 6])
@pytest.mark.parametrize("mixer", [Attention(), Attention(window=3)], ids=["full", "window"])
def test_attention_with_shared_key_heads(mixer, head_dim, n_kv_heads):
    shape = Dims(dim=16, n_layers=2, n_heads=4, n_kv_heads=n_kv_heads, head_dim=head_dim, hidden=24)
    check(LayerSpec(mixer=mixer, canon_at="ABCD"), shape)
