"""Muon and AdamW as one optimizer: what each takes, and that together they are what they are alone."""

import copy

import pytest
import torch

from lit_small_lm.__main__ import main
from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.checkpoint import checkpoints_in, read
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.mlp import MLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.positions import Learned
from lit_small_lm.nn.routers import SoftmaxRouter
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.shapes import FixedShape
from lit_small_lm.testing import check
from lit_small_lm.training.muon import Muon

LAYER = LayerSpec(mixer=Attention(shift="bias"), ffn=MLP(shift="bias"), canon_at="A")


def network(**spec):
    torch.manual_seed(0)
    shape = FixedShape(dim=8, n_layers=1, n_heads=2, hidden=12)
    return Backbone(BackboneSpec(layer=LAYER, **spec), shape.resolve(), 16)


def gradients(net, step):
    torch.manual_seed(step)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)


@pytest.mark.parametrize(
    "spec", [Muon(), Muon(lr_ratio=20.0, update_size="original", ns_steps=3, momentum=0.8)], ids=repr
)
def test_contracts(spec):
    check(spec)


def test_roles_decide_who_takes_a_parameter():
    net = network(positions=Learned(length=8), head="untied", more_layers={"conv": LayerSpec(mixer=ShortConv())})
    groups = Muon(weight_decay=0.3).build(list(net.named_roles()), fused=True).param_groups
    taken = {name: "momentum" in group for group in groups for name in group["param_names"]}
    assert len(taken) == len(list(net.parameters()))
    matrices = {
        f"layers.0.{name}.weight" for name in ("mixer.qkv_proj", "mixer.o_proj", "ffn.up_proj", "ffn.down_proj")
    }
    assert {name for name, muon in taken.items() if muon} == matrices
    decayed = {name for group in groups if group["weight_decay"] == 0.3 for name in group["param_names"]}
    assert matrices < decayed
    assert "embed.weight" not in decayed


def test_experts_are_matrices_and_their_router_is_not():
    experts = MoE(
        expert=MLP(), router=SoftmaxRouter(), n_experts=3, expert_hidden=4, shared_hidden=4, shared_gate="sigmoid"
    )
    net = Backbone(BackboneSpec(layer=LayerSpec(ffn=experts)), network().dims, 16)
    groups = Muon().build(list(net.named_roles()), fused=False).param_groups
    taken = [name for group in groups if "momentum" in group for name in group["param_names"] if ".ffn." in name]
    assert len(taken) == 2 * (3 + 1)
    assert not any("router" in name or "shared_gate" in name for name in taken)


def test_together_they_step_as_alone():
    net = network()
    twin, joint = (
        copy.deepcopy(net),
        Muon(lr=0.01, lr_ratio=2.0, weight_decay=0.2).build(list(net.named_roles()), False),
    )
    inside = [p for name, p in twin.named_parameters() if "proj.weight" in name]
    decayed = [p for name, p in twin.named_parameters() if "canon" in name]
    rest = [p for p in twin.parameters() if not any(p is q for q in (*inside, *decayed))]
    alone = [
        torch.optim.Muon(inside, lr=0.02, weight_decay=0.2, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(decayed, lr=0.01, weight_decay=0.2, betas=(0.9, 0.95)),
        torch.optim.AdamW(rest, lr=0.01, weight_decay=0.0, betas=(0.9, 0.95)),
    ]
    assert [group["lr"] for group in joint.param_groups] == [0.01, 0.01, 0.02]
    for step in range(4):
        for one in (net, twin):
            gradients(one, step)
        joint.step()
        for optimizer in alone:
            optimizer.step()
    for (name, found), wanted in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(found, wanted), name


def test_a_loaded_state_goes_on_where_it_was_saved():
    net = network()
    first = Muon().build(list(net.named_roles()), False)
    for step in range(3):
        gradients(net, step)
        first.step()
    twin = copy.deepcopy(net)
    second = Muon().build(list(twin.named_roles()), False)
    gradients(twin, 7)
    second.step()  # what it held before is replaced
    twin.load_state_dict(net.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for group in (*first.param_groups, *second.param_groups):  # as a schedule does
        group["lr"] = 0.1 * group["lr_scale"]
    for step in range(3, 5):
        for one, optimizer in ((net, first), (twin, second)):
            gradients(one, step)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    wanted, found = first.state_dict()["state"], second.state_dict()["state"]
    assert all(torch.equal(wanted[i][key], found[i][key]) for i in wanted for key in wanted[i])


def test_the_closure_is_called_once_with_gradients():
    net, calls = network(), []
    optimizer = Muon().build(list(net.named_roles()), False)
    gradients(net, 0)
    assert optimizer.step(lambda: calls.append(torch.is_grad_enabled()) or 2.5) == 2.5
    assert calls == [True]


def test_a_network_without_matrices_is_adamws():
    net = network()
    optimizer = Muon().build([p for p in net.named_roles() if p.role == "norm"], False)
    gradients(net, 0)
    optimizer.step()
    assert len(optimizer.parts) == 1


def test_a_resume_changes_settings_and_refuses_another_optimizer(tmp_path, tiny, capsys):
    argv = ["fit", *tiny, "--trainer.max_steps", "6", "--schedule.decay", "0", "--optim", "Muon"]
    assert main([*argv, "--optim.lr_ratio", "2", "--run_dir", str(tmp_path / "run")]) == 0
    branch = ["fit", "--branch_from", str(checkpoints_in(tmp_path / "run")[0]), "--trainer.max_steps", "9"]
    settings = ["--optim.momentum", "0.5", "--optim.lr_ratio", "3", "--optim.beta1", "0.8"]
    assert main([*branch, *settings, "--run_dir", str(tmp_path / "branch")]) == 0
    groups = read(checkpoints_in(tmp_path / "branch")[0])["optimizer_states"][0]["param_groups"]
    assert {group["momentum"] for group in groups if "momentum" in group} == {0.5}
    assert {group["betas"] for group in groups if "betas" in group} == {(0.8, 0.95)}
    assert {group["lr"] for group in groups} == {0.001, 0.003}
    assert main([*branch, "--optim", "AdamW", "--run_dir", str(tmp_path / "other")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: optim: AdamW, but the checkpoint has the state of Muon")
    assert not (tmp_path / "other").exists()


def test_a_gradient_scaler_unscales_and_skips_overflow():
    """As 16-mixed has it on a GPU."""
    net, twin = network(), network()
    scaled, plain = (Muon(weight_decay=0.0).build(list(one.named_roles()), False) for one in (net, twin))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(2):
        gradients(net, step)
        gradients(twin, step)
        for parameter in net.parameters():
            parameter.grad.mul_(scaler.scale(torch.ones(())))
        scaler.unscale_(scaled)
        scaler.step(scaled)
        scaler.update()
        plain.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    gradients(net, 2)
    net.embed.weight.grad[0, 0] = torch.inf
    scaler.scale(torch.ones(()))
    scaler.step(scaled)
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


@pytest.mark.slow  # two processes
def test_sharded_weights_take_the_same_steps(tmp_path, tiny, cli, lines):
    """To the rounding of the Newton-Schulz steps, which are in bfloat16 (measured: 5e-5 of a loss after 20 steps)."""
    argv = ["fit", *tiny, "--optim", "Muon", "--optim.lr", "0.01"]
    assert main([*argv, "--run_dir", str(tmp_path / "one")]) == 0
    two = cli(*argv, "--trainer.devices", "2", "--trainer.strategy", "FSDP2", "--run_dir", tmp_path / "two")
    assert two.rc == 0, two.stderr[-2000:]
    losses = lines(tmp_path / "one").pairs("train/loss")
    assert lines(tmp_path / "two").pairs("train/loss") == [(at, pytest.approx(x, rel=1e-3)) for at, x in losses]
    saved = [read(checkpoints_in(tmp_path / name)[0])["optimizer_states"][0]["state"] for name in ("one", "two")]
    shapes = [{i: {key: value.shape for key, value in state.items()} for i, state in one.items()} for one in saved]
    assert shapes[0] == shapes[1]
