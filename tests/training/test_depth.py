"""Depth telemetry in a run: what is written where, and that training does not notice it."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from PIL import Image

import lit_small_lm as lsl
from lit_small_lm.__main__ import main
from lit_small_lm.batch import Batch, Specials
from lit_small_lm.checkpoint import checkpoints_in, read
from lit_small_lm.context import Visibility
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.data.tokenizer import Bytes
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.plugin import Query
from lit_small_lm.training.callbacks.checkpoints import Checkpoints
from lit_small_lm.training.callbacks.depth import DepthMonitor, first_rows, groups_of
from lit_small_lm.training.callbacks.heat_map import GREY, heat_map, heat_maps, histories, scaled

LAYERS = ["--model.shape.n_layers", "2", "--model.backbone.layer.mixer.dropout", "0.1"]
OFTEN = ["--depth.every_n_steps", "4"]
ALWAYS = {
    "variance", "angular_distance", "angular_distance_last", "block_influence", "mixer_input", "ffn_input",
    "mixer_update", "ffn_update", "gradient_norm", "attention_entropy", "dead_units",
}  # fmt: skip
EXPERTS = [
    "--model.backbone.layer.ffn", "MoE", "--model.backbone.layer.ffn.expert", "GatedMLP",
    "--model.backbone.layer.ffn.n_experts", "4", "--model.backbone.layer.ffn.router", "SigmoidRouter",
    "--model.backbone.layer.ffn.router.top_k", "2",
]  # fmt: skip


def depth_lines(run_dir):
    """The lines with figures by depth, without the time they were written at."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if "depth_variance/0" in line]


def weights(run_dir):
    return read(checkpoints_in(run_dir)[0])["state_dict"]


@pytest.fixture(scope="module")
def fit(tiny, tmp_path_factory):
    """Trains in a folder of this file's; returns its run directory."""
    folder = tmp_path_factory.mktemp("depth")

    def run(name, *options):
        assert main(["fit", *tiny, *LAYERS, *options, "--run_dir", str(folder / name)]) == 0
        return folder / name

    return run


@pytest.fixture(scope="module")
def measured(fit):
    return fit("measured", *OFTEN)


def test_every_figure_of_every_layer_is_written(measured):
    lines = depth_lines(measured)
    assert [line["step"] for line in lines] == [1, 4, 8, 12]
    assert [line["tokens"] for line in lines] == [64, 256, 512, 768]
    names = {f"depth_{name}/{layer}" for name in ALWAYS for layer in range(2)}
    assert all(set(line) == {"step", "tokens", *names} for line in lines)
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert len({line["depth_variance/0"] for line in lines}) == 4


def test_tensorboard_has_scalars_and_heat_maps(measured):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(measured / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("depth_variance/1")}
    wanted = {line["step"]: pytest.approx(line["depth_variance/1"], rel=1e-6) for line in depth_lines(measured)}
    assert found == wanted
    assert set(events.Tags()["images"]) == {f"depth_{name}" for name in ALWAYS}
    (image,) = events.Images("depth_variance")
    assert image.step == 12
    assert image.width > image.height / 2 > 100


def test_heat_maps_are_drawn_ever_less_often(fit):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = fit("each step", "--depth.every_n_steps", "1")
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert [image.step for image in events.Images("depth_variance")] == [4, 8, 12]  # the last one at the end


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--trainer.accumulate_grad_batches", "2", "--activation_checkpointing", "layers"],
        [*EXPERTS, "--trainer.precision", "bf16-mixed"],
        ["--model.backbone.norm", "AttentionResiduals", "--ema_decay", "0.9"],
        pytest.param(["--compile", "default"], marks=pytest.mark.slow),  # compiles twice
    ],
    ids=["plain", "accumulated and run again", "experts in bfloat16", "many streams, averaged", "compiled"],
)
def test_training_does_not_notice(options, fit, lines, request):
    """Losses, gradients and weights are bit for bit those of a run without; dropout is on."""
    name = request.node.callspec.id
    on = fit(f"{name} on", *options, "--depth.every_n_steps", "1")
    off = fit(f"{name} off", *options, "--depth.every_n_steps", "null")
    assert len(depth_lines(on)) == 12
    assert depth_lines(off) == []
    for key in ("train/loss", "train/grad_norm", "val/loss", "tokens"):
        assert lines(on).pairs(key)[: 12 if key == "tokens" else None]
        assert dict(lines(on).pairs(key)) == dict(lines(off).pairs(key)), key
    found, wanted = weights(on), weights(off)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_gradients_of_all_layers_and_the_rest_make_up_the_whole(fit, lines):
    """The rest is embedding, head and final norm; clipping comes later."""
    run = fit("gradients", *OFTEN, "--trainer.gradient_clip_val", "1e-3", "--model.backbone.head", "untied")
    for line in depth_lines(run):
        parts = [line[f"depth_gradient_norm/{layer}"] for layer in range(2)]
        whole = dict(lines(run).pairs("train/grad_norm"))[line["step"]]
        assert 1e-3 < math.hypot(*parts) < whole


class Kept(Logger):
    """A logger of the user's: keeps what it is given."""

    name, version = "kept", "0"

    def __init__(self):
        super().__init__()
        self.lines = {}

    def log_metrics(self, metrics, step=None):
        self.lines.setdefault(step, {}).update(metrics)

    def log_hyperparams(self, *args, **kwargs):
        """Nothing."""


class ByHand(Callback):
    """The norm of each layer's gradients, from one long vector."""

    def on_after_backward(self, trainer, pl_module):
        layers = pl_module.net.layers
        self.norms = [torch.cat([p.grad.flatten() for p in layer.parameters()]).norm().item() for layer in layers]


def test_a_layers_gradient_norm_by_hand_in_a_run_from_python(tiny_text, tmp_path):
    """Eleven layers, so that their numbers are padded; the lines reach a logger of the user's."""
    model = lsl.AutoregressiveLM(lsl.BackboneSpec(), lsl.FixedShape(dim=16, n_layers=11, n_heads=2))
    data = lsl.TokenData(source=TextFiles(path=str(tiny_text)), tokenizer=Bytes(), seq_len=16, batch_size=4)
    kept, by_hand = Kept(), ByHand()
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=kept, limit_val_batches=0, callbacks=[DepthMonitor(), by_hand],
        enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, data)
    found = [kept.lines[1][f"depth_gradient_norm/{layer:02}"] for layer in range(11)]
    assert found == pytest.approx(by_hand.norms, rel=1e-5)
    assert len(set(found)) == 11


def test_gradients_are_those_of_the_step_however_it_is_split(fit, measured):
    """Two accumulated batches: the gradient is that of all rows; the figures of the stream are of the first batch."""
    plain = ["--model.backbone.layer.mixer.dropout", "0"]
    whole, halves = (
        fit("whole", *OFTEN, *plain),
        fit("halves", *OFTEN, *plain, "--trainer.accumulate_grad_batches", "2"),
    )
    for one, other in zip(depth_lines(whole), depth_lines(halves), strict=True):
        assert other["depth_gradient_norm/0"] == pytest.approx(one["depth_gradient_norm/0"], rel=1e-3)
        assert other["depth_variance/0"] != one["depth_variance/0"]
    two = fit("two rows", *OFTEN, *plain, "--depth.rows", "2")
    for one, other in zip(depth_lines(two), depth_lines(halves), strict=True):
        assert other["depth_variance/0"] == pytest.approx(one["depth_variance/0"], rel=1e-3)


def test_padded_rows_scale_the_gradient_as_the_step_does(fit, lines):
    """Where few positions count, the norm is that of the mean over them."""
    run = fit("padded", *OFTEN, "--data.packing", "best_fit", "--data.seq_len", "48", "--model.backbone.head", "untied")
    for line in depth_lines(run):
        parts = [line[f"depth_gradient_norm/{layer}"] for layer in range(2)]
        assert math.hypot(*parts) < dict(lines(run).pairs("train/grad_norm"))[line["step"]]


def test_a_resumed_run_writes_the_same_lines(fit, measured, tmp_path, tiny, monkeypatch):
    class Crash(BaseException):
        """Stands in for a machine that fails."""

    original = Checkpoints.on_train_batch_end

    def dying(self, trainer, *others):
        original(self, trainer, *others)
        if trainer.global_step == 8:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", dying)
        with pytest.raises(Crash):
            main(["fit", *tiny, *LAYERS, *OFTEN, "--run_dir", str(tmp_path / "run")])
    assert [line["step"] for line in depth_lines(tmp_path / "run")] == [1, 4, 8]
    assert main(["fit", "--run_dir", str(tmp_path / "run"), "--resume"]) == 0  # from step 6
    assert depth_lines(tmp_path / "run") == depth_lines(measured)
    steps, values = histories(tmp_path / "run" / "metrics.jsonl")["depth_variance"]
    assert (steps, values.shape) == ([1, 4, 8, 12], (2, 4))


def test_experts_are_there_where_there_are_some(fit):
    first = depth_lines(fit("experts", *EXPERTS, *OFTEN))[0]
    more = {key.split("/")[0].removeprefix("depth_") for key in first if key.endswith("/1")} - ALWAYS
    assert more == {"load_imbalance", "load_entropy", "dead_experts"}
    assert 1 <= first["depth_load_imbalance/1"] <= 2  # at most every position to the same two of four
    assert 0 < first["depth_load_entropy/1"] <= 1


@pytest.mark.parametrize("option", ["--depth.every_n_steps", "--depth.rows"])
@pytest.mark.parametrize("value", ["0", "-3", "1.5", "often"])
def test_values_out_of_range_are_refused(option, value, tmp_path, tiny, capsys):
    assert main(["fit", *tiny, option, value, "--run_dir", str(tmp_path / "run")]) == 2
    assert option.removeprefix("--") in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------------- parts
def test_it_is_due_at_the_first_step_and_then_now_and_then():
    assert [step for step in range(1, 26) if DepthMonitor(10)._due(step)] == [1, 10, 20]
    assert not any(DepthMonitor(None)._due(step) for step in range(1, 26))


def batch():
    tokens = torch.tensor([[3, 9, 5, 9, 4], [3, 4, 9, 1, 1], [7, 7, 7, 7, 7]])
    docs = torch.tensor([[0, 0, 0, 0, 0], [1, 1, 1, -1, -1], [2, 2, 2, 2, 2]])
    return Batch(tokens, docs, docs[:, 1:] >= 0, torch.tensor([5, 6, 7]), torch.arange(3), Specials(10, 0, 1, 9))


def test_the_first_rows_of_a_batch():
    whole, part = batch(), first_rows(batch(), 2)
    for field in dataclasses.fields(Batch):
        value, wanted = getattr(part, field.name), getattr(whole, field.name)
        assert value == wanted if field.name == "specials" else torch.equal(value, wanted[:2]), field.name
    assert len(first_rows(whole, 9).tokens) == 3


def test_the_last_token_is_the_last_that_is_none_of_the_padding():
    query = NextToken().query(batch(), (0, 0))
    (last,) = groups_of(NextToken(), batch(), query).values()
    assert last.tolist() == [[False, False, False, True], [False, False, True, False], [False, False, False, True]]


def test_masked_and_unmasked_positions_of_an_objective_that_masks():
    class Masking(NextToken):
        kind = "bidirectional"

        def query(self, batch, key):
            tokens = batch.tokens[:, :-1]
            return Query(tokens, Visibility.rows(tokens, batch.doc_ids[:, :-1], self.kind), tokens)

    groups = groups_of(Masking(), batch(), Masking().query(batch(), (0, 0)))
    assert groups["masked"].nonzero().tolist() == [[0, 1], [0, 3], [1, 2]]
    assert torch.equal(groups["unmasked"], ~groups["masked"])
    without = dataclasses.replace(batch(), specials=Specials(10, 0, 1, None))
    assert groups_of(Masking(), without, Masking().query(without, (0, 0))) == {}


def test_a_heat_map_shows_layers_upwards_and_steps_to_the_right():
    values = np.array([[1.0, 2.0], [3.0, math.nan]])
    image = heat_map(values, [1, 100], "depth_variance")
    corners = [image[i, j].tolist() for i in (-30, 30) for j in (40, 110)]  # below left, below right, above left, ...
    assert corners == [[68, 1, 84], [33, 145, 140], [253, 231, 37], list(GREY)]
    assert image.dtype == np.uint8


def test_wide_spans_are_logarithmic_and_say_so():
    shares, said = scaled(np.array([[1.0, 10.0, 100.0]]))
    assert shares.tolist() == [[0.0, 0.5, 1.0]]
    assert said == "1 (dark) to 100, log"
    shares, said = scaled(np.array([[0.0, 10.0, 100.0, math.inf]]))
    assert shares[0, :3].tolist() == [0.0, 0.1, 1.0]
    assert math.isnan(shares[0, 3])
    assert said == "0 (dark) to 100"
    assert np.isnan(scaled(np.array([[math.inf]]))[0]).all()
    assert scaled(np.array([[2.0, 2.0]]))[0].tolist() == [[0.0, 0.0]]


def test_long_histories_are_thinned_and_keep_their_end():
    values = np.zeros((3, 5000))
    values[:, -1] = 1.0
    image = heat_map(values, list(range(5000)), "depth_variance")
    assert image.shape[1] < 600
    assert (image == [253, 231, 37]).all(-1).any()


def test_histories_leave_gaps_where_a_layer_has_no_figure(tmp_path):
    lines = [{"step": 1, "train/loss": 3.0}, {"step": 1, "depth_a/0": 1.0, "depth_a/2": "nan"}]
    lines += [{"step": 5, "depth_a/0": 2.0, "depth_b/1": 7.0, "depth_a/2": 3.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = histories(tmp_path / "metrics.jsonl")
    assert found["depth_a"][0] == [1, 5]
    np.testing.assert_array_equal(found["depth_a"][1], [[1.0, 2.0], [math.nan, math.nan], [math.nan, 3.0]])
    assert found["depth_b"][0] == [5]
    assert heat_maps(tmp_path / "metrics.jsonl").keys() == {"depth_a", "depth_b"}
    assert Image.fromarray(heat_maps(tmp_path / "metrics.jsonl")["depth_b"]).size[1] > 100


# ------------------------------------------------------------------------------------------------- several processes
@pytest.mark.slow  # two processes
@pytest.mark.parametrize(
    "strategy",
    [["ddp"], ["FSDP2"], ["FSDP2", "--trainer.strategy.tensor_parallel_size", "2"]],
    ids=["ddp", "FSDP2", "tensor parallel"],
)
def test_two_processes_measure_what_one_does(strategy, tmp_path, tiny, cli):
    """Two rows on each are the four of one; of dead units each process counts those of its rows."""
    tensor = len(strategy) > 1
    options = [*tiny, *LAYERS, *OFTEN, "--model.backbone.layer.mixer.dropout", "0", "--model.shape.n_kv_heads", "2"]
    rows = "4" if tensor else "2"
    more = ["--trainer.devices", "2", "--trainer.strategy", *strategy, "--depth.rows", rows]
    two = cli("fit", *options, *more, "--run_dir", tmp_path / "two")
    assert two.rc == 0, two.stderr[-2000:]
    assert main(["fit", *options, "--run_dir", str(tmp_path / "one")]) == 0
    found, wanted = depth_lines(tmp_path / "two"), depth_lines(tmp_path / "one")
    assert [line["step"] for line in found] == [1, 4, 8, 12]
    for one, other in zip(wanted, found, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            if "dead_units" not in key:
                assert other[key] == pytest.approx(one[key], rel=2e-4), key
