"""State that moves once per optimizer step: the same however a step is split, counted once, kept in checkpoints."""

import pytest
import torch
from torch import nn

from lit_small_lm.__main__ import main
from lit_small_lm.checkpoint import checkpoints_in, load, read
from lit_small_lm.roles import Stepped, moving_buffers
from lit_small_lm.training.stepped import move

EXPERTS = [
    "--model.backbone.layer.ffn", "MoE", "--model.backbone.layer.ffn.expert", "GatedMLP",
    "--model.backbone.layer.ffn.n_experts", "6", "--model.backbone.layer.ffn.expert_hidden", "8",
    "--model.backbone.layer.ffn.router", "SigmoidRouter", "--model.backbone.layer.ffn.router.top_k", "2",
    "--model.backbone.layer.ffn.router.bias_rate", "0.0078125", "--model.shape.n_layers", "2",
]  # fmt: skip
RATE, STEPS = 2**-7, 5


class Counter(Stepped, nn.Module):
    """Adds up what it is told."""

    moving = ("total",)

    def __init__(self, address):
        super().__init__()
        self.address = address
        self.register_buffer("total", torch.zeros(2, dtype=torch.long))

    def reset_moving(self):
        self.total.zero_()

    def after_step(self, tally):
        self.total += tally


def test_each_module_is_told_its_own_sum_over_processes():
    net = nn.ModuleList([Counter("a"), nn.Linear(2, 2), Counter("b"), Counter("silent")])
    asked = []

    def reduce(tally, reduce_op):
        asked.append(reduce_op)
        return tally * 3  # as if three processes had counted alike

    move(net, {"a": torch.tensor([1, 2]), "b": torch.tensor([3, 4]), "nobody": torch.tensor([9])}, reduce)
    assert [net[i].total.tolist() for i in (0, 2, 3)] == [[3, 6], [9, 12], [0, 0]]
    assert asked == ["sum"]  # one exchange for all
    assert moving_buffers(net) == {"0.total", "2.total", "3.total"}
    move(nn.Linear(2, 2), {"a": torch.tensor([1])}, reduce)
    assert asked == ["sum"]  # and none where nobody listens


def biases(run_dir):
    state = read(checkpoints_in(run_dir)[0])["state_dict"]
    return {name: value for name, value in state.items() if name.endswith("router.bias")}


@pytest.fixture(scope="module")
def options(tiny):
    return ["fit", *tiny, *EXPERTS, "--trainer.max_steps", str(STEPS), "--data.batch_size", "8"]


@pytest.fixture(scope="module")
def plain(options, tmp_path_factory):
    """The biases of a run of whole batches in one process."""
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    assert main([*options, "--run_dir", str(run_dir)]) == 0
    return run_dir


def test_a_bias_moves_by_one_rate_a_step(plain, lines):
    found = biases(plain)
    assert sorted(found) == [f"net.layers.{i}.ffn.router.bias" for i in range(2)]
    for bias in found.values():
        moves = bias / RATE
        assert torch.equal(moves, moves.round())
        assert 0 < moves.abs().max() <= STEPS
    logged = dict(lines(plain).pairs("train/bias_range"))
    assert logged[1] == 0.0
    assert logged[2] == 2 * RATE  # one up, one down, in both layers


@pytest.mark.parametrize(
    "extra",
    [
        ["--trainer.accumulate_grad_batches", "2"],
        ["--trainer.accumulate_grad_batches", "4", "--activation_checkpointing", "layers"],
        ["--activation_checkpointing", "layers", "--trainer.val_check_interval", "1"],
    ],
    ids=["accumulated", "accumulated and run again", "run again, validated in between"],
)
def test_however_a_step_is_split_its_bias_is_the_same(extra, options, plain, tmp_path):
    assert main([*options, *extra, "--run_dir", str(tmp_path / "run")]) == 0
    found, wanted = biases(tmp_path / "run"), biases(plain)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_loaded_model_has_the_bias_it_was_trained_to(plain):
    net = load(plain).net
    for name, bias in biases(plain).items():
        assert torch.equal(net.get_buffer(name.removeprefix("net.")), bias)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "FSDP2"])
def test_two_processes_move_the_bias_of_one(strategy, options, plain, tmp_path, cli):
    result = cli(*options, "--trainer.devices", "2", "--trainer.strategy", strategy, "--run_dir", tmp_path / "run")
    assert result.rc == 0, result.stderr[-3000:]
    found, wanted = biases(tmp_path / "run"), biases(plain)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
