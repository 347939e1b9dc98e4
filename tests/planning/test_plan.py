"""A plan as a whole: every part is there, plain, and says what deserves a second look."""

import dataclasses
import json

import pytest

from lit_small_lm.backbone import BackboneSpec, LayerSpec
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.planning import plan as planning
from lit_small_lm.planning.devices import by_name
from lit_small_lm.planning.outline import Outline
from lit_small_lm.planning.plan import Conditions, Planned, plain, plan
from lit_small_lm.planning.workload import Workload
from lit_small_lm.plugin import Dims
from lit_small_lm.training.optim import AdamW

DIMS = Dims(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, hidden=48)
WORKLOAD = Workload(
    optim=AdamW(),
    seq_len=16,
    batch_size=4,
    rows=4,
    precision="bf16-mixed",
    accelerator="cuda",
    steps=1000,
    tokens=64_000,
)
SUBJECT = Planned(outline=Outline(BackboneSpec(), DIMS, 300), workload=WORKLOAD, source="a test", vocabulary="given")
A100 = Conditions(device=by_name("a100-80gb"))


def of(conditions=A100, **changes):
    workload = {name: changes.pop(name) for name in list(changes) if name not in ("outline", "head_is_known")}
    subject = dataclasses.replace(SUBJECT, workload=dataclasses.replace(WORKLOAD, **workload), **changes)
    return plan(subject, conditions)


def test_everything_is_plain():
    found = plain(of())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {
        "model", "parameters", "memory", "cache", "canvas_bytes", "flops", "flops_of_run", "tokens", "laws", "time",
        "energy", "disk", "evidence", "methods", "notes",
    }  # fmt: skip
    assert set(found["memory"]) == {"training", "inference"}
    assert all(statement["text"] for statement in [*found["methods"].values(), *found["evidence"]])


def test_figures_belong_together():
    found = of()
    assert found.flops_of_run == 64_000 * found.flops.training_per_token
    assert found.tokens.per_step == 64 and found.tokens.steps == 1000
    assert found.tokens.per_parameter == pytest.approx(64_000 / found.parameters.total)
    rate = 312e12 * 0.35 / found.flops.training_per_token
    assert found.time.tokens_per_second == pytest.approx(rate)
    assert found.time.seconds == pytest.approx(64_000 / rate)
    assert found.energy.kwh == pytest.approx(found.time.seconds / 3600 * 0.4 * 0.8)
    held = found.memory.training
    assert found.disk.checkpoint_bytes == held.weights_bytes + held.optimizer_bytes


def test_checkpoints_are_whole_however_training_is_sharded():
    sharded = of(processes=4, shards=4, batch_size=16)
    assert sharded.memory.training.weights_bytes == of().memory.training.weights_bytes // 4
    assert sharded.disk.checkpoint_bytes == of().disk.checkpoint_bytes


def test_several_devices_share_the_time():
    one, four = of(), of(processes=4, batch_size=16)
    assert four.time.seconds == pytest.approx(one.time.seconds / 4)
    assert four.energy.kwh == pytest.approx(one.energy.kwh)


def test_what_depends_on_the_data_is_not_said():
    found = of(steps=None, tokens=None)
    assert found.flops_of_run is None and found.tokens.run is None and found.laws.loss is None
    assert found.time.seconds is None and found.energy.kwh is None
    assert found.time.tokens_per_second > 0 and found.laws.tokens_wanted.d is not None


def test_without_a_device_there_is_no_time():
    found = of(Conditions())
    assert found.time is None and found.energy is None


def test_looking_both_ways_keeps_no_cache_and_has_no_law():
    found = of(objective=MaskedDiffusion())
    assert found.cache is None and of().canvas_bytes is None
    assert found.canvas_bytes > 16 * 300 * 2  # the logits alone
    assert found.laws.loss.band is None and found.laws.loss.statements


def test_a_head_that_nobody_spoke_of():
    found = of(head_is_known=False).model
    assert found.total_if_tied == of().parameters.total
    assert found.total_if_untied - found.total_if_tied == 300 * 32
    assert of().model.total_if_tied is None


def test_notes_say_what_does_not_fit(monkeypatch):
    small = dataclasses.replace(A100.device, memory=1000.0, name="tiny")
    assert any("tiny has 0 GiB" in note for note in of(Conditions(device=small)).notes)
    assert not any("tiny" in note for note in of().notes)
    assert any("a blind guess's" in note for note in of().notes)
    assert any("fit does not train in bf16-true" in note for note in of(precision="bf16-true").notes)


def test_a_part_that_cannot_be_rehearsed(monkeypatch):
    def broken(outline, workload):
        raise ValueError("no such thing without values")

    monkeypatch.setattr(planning, "training", broken)
    found = of()
    assert found.memory.training is None and found.disk is None
    assert any("ValueError" in note and "no such thing" in note for note in found.notes)
    assert found.parameters.total > 0


def test_parts_that_do_not_go_together_are_refused():
    spec = BackboneSpec(layer=LayerSpec(ffn=GatedMLP(), canon_at="AA"))
    with pytest.raises(RequestError, match="canon_at"):
        of(outline=Outline(spec, DIMS, 300))


def test_a_device_without_the_arithmetic_is_refused():
    with pytest.raises(RequestError, match="v100-16gb: no bf16 rate"):
        of(Conditions(device=by_name("v100-16gb")), precision="bf16-mixed")
