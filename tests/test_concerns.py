"""What parts declare against others is reported, once it applies and not before."""

import dataclasses

import pytest

from lit_small_lm.backbone import BackboneSpec, LayerSpec
from lit_small_lm.concerns import OF_SCHEDULES, parts_of
from lit_small_lm.discovery import discover
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.completep import CompletePInit, CompletePNorm
from lit_small_lm.nn.deep_norm import DeepNorm
from lit_small_lm.nn.init import DepthScaledInit, NormalInit, ScaledInit, ZeroOutInit
from lit_small_lm.nn.mix_norm import MixNorm
from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.nn.peri_norm import PeriNorm
from lit_small_lm.nn.pointwise_norms import DyT
from lit_small_lm.nn.prores import ProRes
from lit_small_lm.nn.reordered_norm import ReorderedNorm
from lit_small_lm.nn.residual import LayerNormScaling, PostNorm, PreNorm
from lit_small_lm.plugin import Concern, Init, NormScheme, kinds, known

discover()
DECLARING = [cls for kind in (NormScheme, Init) for cls in known(kind).values()]


@pytest.mark.parametrize(
    ("norm", "init", "says"),
    [
        (LayerNormScaling(), ScaledInit(), "backbone.norm LayerNormScaling with backbone.init ScaledInit: "),
        (LayerNormScaling(), DepthScaledInit(), "backbone.norm LayerNormScaling with backbone.init DepthScaledInit: "),
        (DeepNorm(), ScaledInit(), "backbone.norm DeepNorm with backbone.init ScaledInit: "),
        (DeepNorm(), ZeroOutInit(), "backbone.norm DeepNorm with backbone.init ZeroOutInit: "),
        (ProRes(scheme=DeepNorm()), ScaledInit(), "backbone.norm ProRes with backbone.init ScaledInit: "),
        (CompletePNorm(), NormalInit(), "backbone.norm CompletePNorm without CompletePInit: "),
        (PreNorm(), CompletePInit(), "backbone.init CompletePInit without CompletePNorm: "),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_warning_names_both_and_says_why(norm, init, says):
    with pytest.warns(UserWarning) as seen:
        BackboneSpec(norm=norm, init=init).report_concerns()
    assert [str(warning.message).startswith(says) for warning in seen] == [True]
    assert len(str(seen[0].message)) > len(says) + 20


@pytest.mark.parametrize("inner", [PeriNorm(), ReorderedNorm()], ids=lambda spec: type(spec).__name__)
def test_an_error_refuses(inner):
    name = type(inner).__name__
    with pytest.raises(RequestError, match=f"backbone.norm ProRes with backbone.norm.scheme {name}: it norms"):
        BackboneSpec(norm=ProRes(scheme=inner)).report_concerns()


@pytest.mark.parametrize(
    "spec",
    [
        BackboneSpec(norm=LayerNormScaling(), init=NormalInit()),
        BackboneSpec(norm=PreNorm(), init=ScaledInit()),
        BackboneSpec(norm=CompletePNorm(), init=CompletePInit()),
        BackboneSpec(norm=PostNorm()),  # what it needs is said by the schedule, which the backbone does not know
    ],
    ids=["LayerNormScaling", "PreNorm", "CompleteP", "PostNorm"],
)
def test_what_goes_together_is_no_concern(spec, recwarn):
    spec.report_concerns()
    assert not recwarn.list


def test_a_part_anywhere_in_the_backbone_is_seen(monkeypatch):
    monkeypatch.setattr(PreNorm, "conflicts", (Concern("RMSNorm", "for the test"),))
    spec = BackboneSpec(
        norm=dataclasses.replace(PreNorm(), norm=DyT()),
        more_layers={"far": LayerSpec(mixer=Attention(qk_norm=RMSNorm()))},
    )
    with pytest.warns(UserWarning, match="with backbone.more_layers.far.mixer.qk_norm RMSNorm: for the test"):
        spec.report_concerns()


def test_every_part_is_found_by_its_path():
    paths = dict(parts_of(BackboneSpec(norm=ProRes(scheme=LayerNormScaling())), "backbone"))
    assert paths["backbone.norm.scheme.norm"] == RMSNorm()
    assert paths["backbone.layer.mixer"] == Attention()


@pytest.mark.parametrize("cls", DECLARING, ids=lambda cls: cls.__name__)
def test_concerns_are_about_something_that_exists(cls):
    spec = ProRes(scheme=PostNorm()) if cls is ProRes else cls()
    names = {name for kind in kinds().values() for name in known(kind)}
    for concern in (*spec.requires, *spec.conflicts):
        assert concern.about in names or concern.about in OF_SCHEDULES, concern
        assert concern.why and not concern.why.endswith("."), concern


def test_schemes_with_post_norm_layers_need_warm_up():
    for scheme in (PostNorm(), MixNorm(), ProRes(scheme=PostNorm())):
        assert [concern.about for concern in scheme.requires] == ["warmup"]
