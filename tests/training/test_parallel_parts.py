"""The parts of several processes, seen from one: a process group that only counts lets this process be one of four."""

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from lit_small_lm.__main__ import main
from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.mlp import MLP, GatedMLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.positions import Learned
from lit_small_lm.nn.routers import SigmoidRouter
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.plugin import FFN, Linear
from lit_small_lm.ranks import number_here, process_number, refuse_odd_numbers
from lit_small_lm.shapes import FixedShape
from lit_small_lm.sharding import drawn_whole, local, part_of, sharded
from lit_small_lm.training.gradients import clip_values, scale_gradients, total_norm
from lit_small_lm.training.parallel import FSDP2, sharded_state

WORLD, RANK = 4, 2
DIMS = FixedShape(dim=16, n_layers=2, n_heads=4, n_kv_heads=2, hidden=24).resolve()
FAMILIES = {
    "llama with Canon": BackboneSpec(layer=LayerSpec(canon_at="ABCD")),
    "GPT-2": BackboneSpec(
        layer=LayerSpec(mixer=Attention(shift="bias"), ffn=MLP(shift="bias")),
        positions=Learned(length=7),
        head="untied",
    ),
    "short convolution": BackboneSpec(layer=LayerSpec(mixer=ShortConv(), canon_at="B")),
}
MIXTURE = BackboneSpec(
    layer=LayerSpec(ffn=MoE(expert=GatedMLP(), router=SigmoidRouter(top_k=2), n_experts=3, expert_hidden=8))
)


@pytest.fixture
def rank():
    """Be the third of four processes; nothing is sent, so only what needs no communication can be asked.

    Always the same one: PyTorch remembers places in meshes beyond the life of a process group.
    """
    distributed.init_process_group("fake", rank=RANK, world_size=WORLD, store=FakeStore())
    yield RANK
    distributed.destroy_process_group()


def sharding(tensor_parallel=1, replicas=1):
    """The strategy as Lightning sets it up, on the CPU."""
    strategy = FSDP2(tensor_parallel, replicas)
    strategy.parallel_devices, strategy.cluster_environment = [torch.device("cpu")] * WORLD, None
    sizes = (WORLD // tensor_parallel, tensor_parallel)
    strategy._device_mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("data_parallel", "tensor_parallel"))
    return strategy


def drawn(family, strategy=None, vocab=13):
    if strategy is None:
        net = Backbone(family, DIMS, vocab)
    else:
        with torch.device("meta"):
            net = Backbone(family, DIMS, vocab)
        strategy.shard(net)
    torch.manual_seed(5)
    net.init_weights()
    return net


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize(("tensor_parallel", "replicas"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_initial_weights_are_those_of_one_process(rank, family, tensor_parallel, replicas, monkeypatch):
    """Each process's part is cut here by hand: by tensor parallelism first, then along the first dimension."""
    monkeypatch.setattr(FSDP2, "root_device", torch.device("cpu"))
    net, wanted = drawn(family, sharding(tensor_parallel, replicas)), dict(drawn(family).named_parameters())
    shards = WORLD // tensor_parallel // replicas
    across, inside = rank % tensor_parallel, rank // tensor_parallel % shards
    for name, parameter in net.named_parameters():
        part, cut = wanted[name], dimension_cut(name)
        if cut is not None:
            part = part.chunk(tensor_parallel, cut)[across]
        pieces = part.chunk(shards)
        part = pieces[inside] if inside < len(pieces) else part[:0]
        assert torch.equal(parameter.to_local(), part), name
        assert parameter.shape == wanted[name].shape


@pytest.mark.parametrize("replicas", [1, 2])
def test_experts_are_sharded_and_what_moves_by_steps_is_whole(rank, replicas, monkeypatch):
    monkeypatch.setattr(FSDP2, "root_device", torch.device("cpu"))
    net, wanted = drawn(MIXTURE, sharding(replicas=replicas)), dict(drawn(MIXTURE).named_parameters())
    shards = WORLD // replicas
    for name, parameter in net.named_parameters():
        pieces = wanted[name].chunk(shards)
        part = pieces[rank % shards] if rank % shards < len(pieces) else wanted[name][:0]
        assert torch.equal(parameter.to_local(), part), name
    assert {name for name, _ in net.named_buffers()} == {f"layers.{i}.ffn.router.bias" for i in range(2)}
    assert all(torch.equal(bias, torch.zeros(3)) for bias in net.buffers())


def dimension_cut(name):
    """The dimension of a parameter that tensor parallelism cuts."""
    if not any(f".{branch}." in name for branch in ("mixer", "ffn")):
        return None
    if "o_proj" in name or "down_proj" in name:
        return 1 if name.endswith("weight") else None
    return 0


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_a_checkpoint_of_one_process_is_cut_alike(rank, tensor_parallel, monkeypatch):
    """Optimizer state is cut as its parameter is; scalars are not."""
    monkeypatch.setattr(FSDP2, "root_device", torch.device("cpu"))
    net, whole = drawn(FAMILIES["GPT-2"], sharding(tensor_parallel)), drawn(FAMILIES["GPT-2"])
    one = torch.optim.AdamW([{"params": list(whole.parameters())[::-1]}])
    for parameter in whole.parameters():
        parameter.grad = parameter.detach().clone()
    one.step()
    other = torch.optim.AdamW([{"params": list(net.parameters())[::-1]}])
    other.load_state_dict(sharded_state(one.state_dict(), other))
    for parameter, twin in zip(net.parameters(), whole.parameters(), strict=True):
        found, wanted = other.state[parameter], one.state[twin]
        assert torch.equal(found["exp_avg"].to_local(), part_of(wanted["exp_avg"], parameter))
        assert found["exp_avg"].placements == parameter.placements
        assert found["step"].item() == wanted["step"].item()


def test_gradients_of_several_kinds(rank, monkeypatch):
    """Whole, cut and replicated ones on two meshes: scaled in place, and the norm asks the right groups once."""
    both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    whole = torch.arange(24.0).view(4, 6)
    kinds = [(both, [Shard(0), Shard(1)]), (both, [Shard(0), Replicate()]), (both["data"], [Shard(0)])]
    gradients = [whole.clone(), *(sharded(whole, empty(mesh, placements)) for mesh, placements in kinds)]
    asked = []
    monkeypatch.setattr(distributed, "all_reduce", lambda square, group: asked.append((square.clone(), group)))
    norm = total_norm(gradients)
    groups = [both.get_group(0), both.get_group(1), both.get_group(0), both["data"].get_group(0)]
    assert [group for _, group in asked] == groups
    squares = [local(gradient).square().sum() for gradient in gradients]
    torch.testing.assert_close(norm, torch.stack(squares).sum().sqrt())  # nothing was added: its own parts only
    before = [local(gradient).clone() for gradient in gradients]
    scale_gradients(gradients, torch.tensor(0.5))
    for gradient, values in zip(gradients, before, strict=True):
        assert torch.equal(local(gradient), values / 2)
    clip_values(gradients, 3.0)
    assert all(local(gradient).max() <= 3 for gradient in gradients)


def empty(mesh, placements):
    piece = torch.zeros(2 if placements[0].is_shard() else 4, 3 if placements[-1] == Shard(1) else 6)
    return DTensor.from_local(piece, mesh, placements, run_check=False)


def test_norm_of_whole_gradients_is_torchs():
    gradients = [torch.randn(3, 4), torch.randn(7)]
    assert total_norm(gradients) == torch.nn.utils.get_total_norm(gradients)


def test_a_draw_is_not_kept_after_an_error():
    layer = nn.Linear(3, 2)
    before = layer.weight
    with pytest.raises(ZeroDivisionError), drawn_whole(layer):
        raise ZeroDivisionError
    assert layer.weight is before


# ------------------------------------------------------------------------------------------------------------- refusals
class SecretFFN(FFN):
    """An FFN whose projection does not say how its channels lie."""

    def build(self, site):
        return Secret(site)


class Secret(nn.Module):
    def __init__(self, site):
        super().__init__()
        self.up_proj = Linear(site.dim, site.dims.hidden, role="gate_up")


SHAPE = ["--model.shape.n_heads", "4", "--model.shape.n_kv_heads", "2"]
SIZE = "--trainer.strategy.tensor_parallel_size"
REFUSED = {
    "sizes": (
        ["--trainer.devices", "4", SIZE, "3"],
        "trainer.strategy.tensor_parallel_size: 3 x trainer.strategy.replicas 1 = 3 does not divide the 4 processes "
        "(trainer.devices 4 x trainer.num_nodes 1)",
    ),
    "replicas": (
        ["--trainer.devices", "2", SIZE, "2", "--trainer.strategy.replicas", "2"],
        "trainer.strategy.tensor_parallel_size: 2 x trainer.strategy.replicas 2 = 4 does not divide the 2 processes "
        "(trainer.devices 2 x trainer.num_nodes 1)",
    ),
    "one device": (
        ["--trainer.devices", "1", SIZE, "1"],
        "trainer.strategy: FSDP2 on 1 device; allowed: trainer.devices of at least 2",
    ),
    "heads": (
        ["--trainer.devices", "4", SIZE, "4", *SHAPE],
        "trainer.strategy.tensor_parallel_size: 4 does not divide the 2 groups of AttentionMixer.qkv_proj (n_heads 4, "
        "n_kv_heads 2, hidden 64); allowed: divisors of 2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_any_process_is_started(case, tiny, tmp_path, capsys):
    options, message = REFUSED[case]
    argv = ["fit", *tiny, "--trainer.strategy", "FSDP2", *options, "--run_dir", str(tmp_path / "run")]
    assert main(argv) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}"
    assert not (tmp_path / "run").exists()


def test_a_part_that_does_not_say_how_it_can_be_cut_is_named():
    with pytest.raises(ValueError, match=r"Secret.up_proj \(Linear\) cannot be cut"):
        FSDP2(tensor_parallel_size=2).refuse_model(BackboneSpec(layer=LayerSpec(ffn=SecretFFN())), DIMS)
    FSDP2(tensor_parallel_size=1).refuse_model(BackboneSpec(layer=LayerSpec(ffn=SecretFFN())), DIMS)


def test_a_router_is_named_as_what_cannot_be_cut():
    with pytest.raises(ValueError, match=r"MoEFFN.router.proj \(Linear\) cannot be cut"):
        FSDP2(tensor_parallel_size=2).refuse_model(MIXTURE, DIMS)
    FSDP2(tensor_parallel_size=1).refuse_model(MIXTURE, DIMS)


def test_a_buffer_is_named(monkeypatch):
    original = Secret.__init__
    monkeypatch.setattr(
        Secret, "__init__", lambda self, site: original(self, site) or self.register_buffer("table", torch.zeros(1))
    )
    with pytest.raises(ValueError, match="the buffer layers.0.ffn.table"):
        FSDP2().refuse_model(BackboneSpec(layer=LayerSpec(ffn=SecretFFN())), DIMS)


@pytest.mark.parametrize(
    ("variables", "number", "here"),
    [
        ({}, 0, 0),
        ({"RANK": "5", "LOCAL_RANK": "1", "SLURM_PROCID": "0"}, 5, 1),
        ({"LOCAL_RANK": "1", "SLURM_PROCID": "0"}, 1, 1),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, -1, 0),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, 3, 1),
        ({"RANK": "x", "LOCAL_RANK": "", "SLURM_PROCID": "3"}, 0, 0),
    ],
    ids=["alone", "torchrun", "lightning", "second machine", "slurm", "no numbers"],
)
def test_every_launcher_numbers_its_processes(variables, number, here, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (process_number(), number_here()) == (number, here)


def test_a_number_of_a_process_that_is_none_is_named(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "z")
    with pytest.raises(RequestError, match="SLURM_PROCID: 'z' in the environment; allowed: a number"):
        refuse_odd_numbers()


# --------------------------------------------------------------------------------------------- activation checkpointing
def trained(net, mode, tokens):
    """Loss, gradients, and the numbers kept for the backward pass."""
    for layer in net.layers:
        layer.activation_checkpointing = mode
    kept = []
    torch.manual_seed(3)
    ctx = Context(Visibility.rows(tokens, torch.arange(12).expand(2, 12) // 5))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        loss = net(tokens, ctx, tokens).mean() + sum(ctx.trace.losses.values())
    return loss, torch.autograd.grad(loss, list(net.parameters())), sum(kept), ctx.trace


class Penalty(nn.Module):
    """A branch's output, with its size as an auxiliary loss; later layers add what the first one shared."""

    def __init__(self, inner, layer):
        super().__init__()
        self.inner, self.layer = inner, layer

    def forward(self, h, ctx):
        out = self.inner(h, ctx)
        first = ctx.trace.once("first", lambda: out * out)
        ctx.trace.losses["size", self.layer] = out.square().mean()
        return out + first


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_layers_run_again_give_the_same_gradients_and_keep_less(dropout):
    """Dropout, auxiliary losses and values shared between layers included."""
    torch.manual_seed(0)
    dims = FixedShape(dim=16, n_layers=3, n_heads=4, n_kv_heads=2, hidden=32).resolve()
    net = Backbone(BackboneSpec(layer=LayerSpec(mixer=Attention(dropout=dropout), canon_at="ABCD")), dims, 50)
    for index, layer in enumerate(net.layers):
        layer.ffn = Penalty(layer.ffn, index)
    tokens = torch.randint(50, (2, 12))
    loss, gradients, kept, trace = trained(net, "off", tokens)
    again, same, less, other = trained(net, "layers", tokens)
    assert again == loss
    assert all(torch.equal(one, two) for one, two in zip(gradients, same, strict=True))
    assert less < kept / 3
    assert trace.losses.keys() == other.losses.keys() == {("size", index) for index in range(3)}
