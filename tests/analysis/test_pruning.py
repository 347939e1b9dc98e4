import dataclasses

import pytest
import torch

from lit_small_lm.analysis.pruning import METRICS, by_angular, chosen, content, parsed, without_layers
from lit_small_lm.analysis.removal import greedily_removed, removed
from lit_small_lm.analysis.states import angular, profiled
from lit_small_lm.analysis.surgery import running
from lit_small_lm.backbone import Backbone, BackboneSpec, Kept, LayerSpec, size_of
from lit_small_lm.checkpoint import LanguageModel
from lit_small_lm.context import Context, Visibility
from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.attention_residuals import AttentionResiduals
from lit_small_lm.nn.completep import CompletePInit, CompletePNorm
from lit_small_lm.nn.deep_norm import DeepNorm
from lit_small_lm.nn.gpas import GPAS
from lit_small_lm.nn.init import DepthScaledInit
from lit_small_lm.nn.mix_norm import MixNorm
from lit_small_lm.nn.prores import ProRes
from lit_small_lm.nn.residual import LayerNormScaling
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.planning.counts import size
from lit_small_lm.planning.outline import Outline

IDS = torch.randint(3, 32, (2, 9), generator=torch.Generator().manual_seed(2))
WINDOW = LayerSpec(mixer=Attention(window=3))
FAMILIES = {
    "pre": BackboneSpec(),
    "scaling": BackboneSpec(norm=LayerNormScaling()),
    "scaling by branch": BackboneSpec(norm=LayerNormScaling(index="branch", factor_on="branch")),
    "deep": BackboneSpec(norm=DeepNorm()),
    "mix": BackboneSpec(norm=MixNorm(share=0.5)),
    "gpas": BackboneSpec(norm=GPAS()),
    "completep": BackboneSpec(norm=CompletePNorm(), init=CompletePInit()),
    "prores": BackboneSpec(norm=ProRes(scheme=LayerNormScaling(), steps=10)),
    "sources": BackboneSpec(norm=AttentionResiduals(branches_a_source=4)),
    "values": BackboneSpec(layer=LayerSpec(mixer=Attention(value_residual="learned"))),
    "windows": BackboneSpec(layer=WINDOW, more_layers={"full": LayerSpec()}, pattern=("layer", "full")),
    "first": BackboneSpec(more_layers={"near": WINDOW}, first=("near",), pattern=("layer", "near", "layer")),
}


@pytest.fixture
def make_model(make_net):
    """`make_model(spec)`: a model of six layers; the record has what pruning reads."""

    class Encoder:
        specials = dataclasses.make_dataclass("Specials", ["vocab_size"])(32)

    def make(spec=BackboneSpec(), layers=6):
        return LanguageModel(make_net(spec, layers), NextToken(), Encoder(), {"step": 7})

    return make


def logits(net, step=None):
    with torch.no_grad():
        return net(IDS, Context(Visibility.rows(IDS), step=step))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("gone", [(0,), (2, 3), (1, 4, 5)], ids=str)
def test_a_pruned_network_is_the_whole_one_without_those_layers(make_model, name, gone):
    model = make_model(FAMILIES[name])
    pruned = without_layers(model, gone)
    rest = [layer for index, layer in enumerate(model.net.layers) if index not in gone]
    for step in (None, torch.tensor(3)):
        with running(model.net, rest):
            wanted = logits(model.net, step)
        assert torch.equal(logits(pruned.net, step), wanted)
    for layer, kept in zip(rest, pruned.net.layers, strict=True):
        theirs = [(m.factor, m.values_factor, m.layer) for m in layer.modules() if type(m).__name__ == "Linear"]
        ours = [(m.factor, m.values_factor, m.layer) for m in kept.modules() if type(m).__name__ == "Linear"]
        assert ours == theirs and len(ours) >= 4


@pytest.mark.parametrize("name", ["scaling", "deep", "mix", "values"])
def test_places_matter(make_model, name):
    """What the field is for: without it another network is built of the same weights, or none."""
    pruned = without_layers(make_model(FAMILIES[name]), (0, 1))
    forgetful = Backbone(dataclasses.replace(pruned.net.spec, kept=None), pruned.net.dims, 32).double().eval()
    state = pruned.net.state_dict()
    if set(forgetful.state_dict()) == set(state):
        forgetful.load_state_dict(state)
        assert not torch.equal(logits(forgetful), logits(pruned.net))
    else:
        assert name in ("mix", "values")  # even the names of the weights differ


def test_pruning_twice_is_pruning_once(make_model):
    model = make_model(FAMILIES["scaling"])
    once, twice = without_layers(model, (1, 2, 4)), without_layers(without_layers(model, (1, 4)), (1,))
    assert once.net.spec == twice.net.spec and once.net.spec.kept == Kept(layers=(0, 3, 5), depth=6)
    assert torch.equal(logits(once.net), logits(twice.net))
    assert twice.record["pruned"] == {"layers": [2]}


def test_the_spec_travels_through_a_record(make_model):
    spec = without_layers(make_model(FAMILIES["first"]), (0, 3)).net.spec
    again = BackboneSpec.from_dict(spec.to_dict())
    assert again == spec and again.layers(4) == spec.layers(4)
    old = spec.to_dict()
    del old["init_args"]["kept"]
    assert BackboneSpec.from_dict(old).kept is None  # records of before there was such a field


def test_initial_weights_go_by_the_whole_network(make_model):
    spec = BackboneSpec(init=DepthScaledInit(std_dev=0.1))
    pruned = without_layers(make_model(spec), (0, 1, 2)).net.float()
    pruned.init_weights()
    wide = [layer.ffn.down_proj.weight.std().item() for layer in pruned.layers]
    wanted = [0.1 / (2 * number) ** 0.5 for number in (4, 5, 6)]
    assert wide == pytest.approx(wanted, rel=0.2)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (Kept(layers=(0, 1), depth=4), "2 layers; shape.n_layers: 3"),
        (Kept(layers=(0, 1, 4), depth=4), "layers: 4; allowed: each of 0 to 3 once"),
        (Kept(layers=(0, 1, 1), depth=4), "layers: 1; allowed"),
    ],
)
def test_layers_that_cannot_be_left_are_refused(make_net, kept, said):
    with pytest.raises(RequestError, match=said):
        make_net(BackboneSpec(kept=kept), layers=3)


def test_a_pruned_network_that_differs_is_not_accepted(make_model, monkeypatch):
    monkeypatch.setattr("lit_small_lm.analysis.pruning.spec_without", lambda spec, layers, depth: BackboneSpec())
    with pytest.raises(RunError, match="logits differ"):
        without_layers(make_model(FAMILIES["scaling"]), (0,))


def test_what_is_written_has_its_own_storage(make_model):
    model = make_model()
    state = content(without_layers(model, (0,)), "2.6")["state_dict"]
    with torch.no_grad():
        model.net.layers[1].ffn.down_proj.weight.zero_()
    assert state["net.layers.0.ffn.down_proj.weight"].abs().max() > 0


@pytest.mark.parametrize(
    ("text", "found"), [("3", [3]), ("3,5-7", [3, 5, 6, 7]), (" 1 , 0-2", [0, 1, 2]), ("7,7", [7])]
)
def test_lists_of_layers(text, found):
    assert parsed(text, 8) == found


@pytest.mark.parametrize("text", ["", "a", "3-", "-1", "5-3", "8", "0-7", "1;2", "1,,2", "\u0663", "9" * 400])
def test_bad_lists_of_layers(text):
    with pytest.raises(RequestError, match="--layers: "):
        parsed(text, 8)


# ------------------------------------------------------------------------------------------------------------- metrics
def least(values, count):
    return sorted(sorted(range(len(values)), key=values.__getitem__)[:count])


def test_layers_are_chosen_by_what_is_measured(make_subject, tell):
    subject = make_subject(layers=5)
    picked = {name: chosen(name, subject, "causal", 3, tell) for name in METRICS}
    assert picked["removal"] == least(removed(subject, tell)["rise"], 2)
    assert picked["influence"] == least(profiled(subject, "causal", tell)["influence"], 2)
    assert picked["greedy"] == sorted(greedily_removed(subject, 2, tell)["layers"])
    distance = angular(subject, "causal", tell)["last"]["distance"]
    starts = {start: distance[start][start + 2] for start in range(4)}
    best = min(starts, key=starts.get)
    assert picked["angular"] == by_angular(subject, "causal", 2, tell) == [best, best + 1]


def test_a_layer_that_does_nothing_goes_first(make_subject, still, tell):
    subject = make_subject()
    still(subject.net.layers[2])
    for name in ("influence", "angular"):  # weights drawn at random lose less without a layer, whichever it is
        assert chosen(name, subject, "causal", 3, tell) == [2]


@pytest.mark.parametrize("keep", [0, 4, -1])
def test_numbers_that_cannot_be_kept(make_subject, tell, keep):
    with pytest.raises(RequestError, match=f"--keep: {keep}; allowed: 1 to 3"):
        chosen("removal", make_subject(), "causal", keep, tell)


def test_of_one_layer_none_can_go(make_subject, tell):
    with pytest.raises(RequestError, match="--keep: 1; the model has one layer"):
        chosen("removal", make_subject(layers=1), "causal", 1, tell)


@pytest.mark.parametrize("name", ["values", "first", "deep"])
def test_pruned_networks_are_counted_without_being_built(make_model, name):
    net = without_layers(make_model(FAMILIES[name]), (0, 1)).net
    assert size(Outline(net.spec, net.dims, 32)) == size_of(net.spec, net.dims, 32)
    assert size_of(net.spec, net.dims, 32).total == sum(parameter.numel() for parameter in net.parameters())
