"""FSDP2: weights, gradients and optimizer state shared out over processes, with tensor parallelism inside a layer.

Every layer's weights are gathered just before it runs (`fully_shard`, arXiv 2304.11277 in its second form); hybrid
sharding keeps one whole copy in every group of processes; tensor parallelism (arXiv 1909.08053) cuts attention and FFN
along their groups of channels. The trick: a checkpoint is the one file, in the one form, that a single process writes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Dims, Linear
from lit_small_lm.roles import Roled, moving_buffers
from lit_small_lm.sharding import load_whole, sharded, whole

SIZE = "trainer.strategy.tensor_parallel_size"


class FSDP2(ModelParallelStrategy):
    """Shards weights, gradients and optimizer state over the processes.

    Args:
        tensor_parallel_size: processes that share the work of every layer; 1: none.
        replicas: copies of the sharded model; more than 1 shards within a group and averages between groups.

    Raises:
        RequestError: sizes that do not go with the number of processes or the model.
    """

    def __init__(self, tensor_parallel_size: int = 1, replicas: int = 1) -> None:
        super().__init__(tensor_parallel_size=tensor_parallel_size, save_distributed_checkpoint=False)
        self.tensor_parallel_size, self.replicas = tensor_parallel_size, replicas

    # ----------------------------------------------------------------------------------------------------- processes
    def _configure_launcher(self) -> None:
        self._refuse_sizes()
        super()._configure_launcher()

    def _refuse_sizes(self) -> None:
        count, size, replicas = self.num_processes * self.num_nodes, self.tensor_parallel_size, self.replicas
        for name, value in (("tensor_parallel_size", size), ("replicas", replicas)):
            if value < 1:
                raise RequestError(f"trainer.strategy.{name}: {value}; allowed: at least 1")
        if count < 2:
            raise RequestError(f"trainer.strategy: FSDP2 on {count} device; allowed: trainer.devices of at least 2")
        if count % (size * replicas):
            raise RequestError(
                f"{SIZE}: {size} x trainer.strategy.replicas {replicas} = {size * replicas} does not divide the "
                f"{count} processes (trainer.devices {self.num_processes} x trainer.num_nodes {self.num_nodes})"
            )

    def setup_environment(self) -> None:
        self.refuse_early(self.lightning_module)
        self._data_parallel_size = self.num_processes * self.num_nodes // self.tensor_parallel_size
        super().setup_environment()

    def refuse_early(self, model: LightningModule) -> None:
        """`refuse_model`, where the widths are known before the vocabulary; else it waits until they are."""
        if model.shape.budget() is None:
            self.refuse_model(model.backbone, model.dims)

    def refuse_model(self, backbone: BackboneSpec, dims: Dims) -> None:
        """Raise RequestError for a model whose layers cannot be shared out; costs no memory."""
        with torch.device("meta"):
            net = Backbone(backbone, dims, vocab_size=1)
        for name in sorted({name for name, _ in net.named_buffers()} - moving_buffers(net)):
            raise RequestError(f"trainer.strategy: FSDP2 with the buffer {name}; allowed: parameters, computed tables")
        if self.tensor_parallel_size == 1:
            return
        for branch, name, module in parts_to_cut(net):
            refuse_cut(branch, name, module, dims, self.tensor_parallel_size)

    # --------------------------------------------------------------------------------------------------------- model
    def shard(self, net: Backbone) -> None:
        """Cut a network on the meta device and give it memory on this process's device; its weights are not set."""
        data, tensor = self._meshes()
        if self.tensor_parallel_size > 1:
            for _, _, module in list(parts_to_cut(net)):
                parallelize_module(module, tensor, style_of(module))
        for layer in net.layers:
            fully_shard(layer, mesh=data)
        fully_shard(net, mesh=data)
        net.to_empty(device=self.root_device)

    def _meshes(self) -> tuple[DeviceMesh, DeviceMesh]:
        """The processes to shard over (with the replicas first, if there are several), and those to cut layers over."""
        mesh = self.device_mesh
        if self.replicas == 1:
            return mesh["data_parallel"], mesh["tensor_parallel"]
        sizes = (self.replicas, mesh["data_parallel"].size() // self.replicas, self.tensor_parallel_size)
        mesh = init_device_mesh(mesh.device_type, sizes, mesh_dim_names=("replicate", "shard", "tensor_parallel"))
        return mesh["replicate", "shard"], mesh["tensor_parallel"]

    # --------------------------------------------------------------------------------------------------- checkpoints
    lightning_restore_optimizer = True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights, on the first process; nothing on the others."""
        return self._gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state a single process would save, on the first process; nothing on the others."""
        saved = optimizer.state_dict()
        states = {index: self._gathered(values) for index, values in saved["state"].items()}
        return {**saved, "state": states} if self.is_global_zero else {}

    def _gathered(self, values: Mapping[str, Any]) -> dict[str, Any]:
        kept = {}
        for name, value in values.items():
            value = whole(value) if isinstance(value, Tensor) else value
            if self.is_global_zero:
                kept[name] = value.cpu() if isinstance(value, Tensor) else value
        return kept

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The content of the file; every process reads it and keeps its parts."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        load_whole(self.lightning_module, checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(sharded_state(saved, optimizer))


def sharded_state(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state dict of an optimizer over whole parameters, for one over sharded ones: state like its parameter."""
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    states = {}
    for number, param in zip(numbers, params, strict=True):
        if number in saved["state"]:
            state = saved["state"][number]
            states[number] = {k: sharded(v, param) if isinstance(v, Tensor) else v for k, v in state.items()}
    return {**saved, "state": states}


# --------------------------------------------------------------------------------------------------- tensor parallelism
class Channels(ParallelStyle):
    """Cuts a part that acts channel by channel, such as a Canon layer inside a cut branch."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, device_mesh, _cut_first)


def _cut_first(name: str, module: nn.Module, mesh: DeviceMesh) -> None:
    for key, tensor in module.named_parameters(recurse=False):
        module.register_parameter(key, nn.Parameter(distribute_tensor(tensor, mesh, [Shard(0)])))


def parts_to_cut(net: Backbone) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every mixer and FFN with the names and modules in it that hold parameters of their own."""
    for branch in (branch for layer in net.layers for branch in (layer.mixer, layer.ffn)):
        for name, module in branch.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                yield branch, name, module


def style_of(module: nn.Module) -> ParallelStyle:
    """How a part is cut: into a branch by columns, out of it by rows, in between by channels."""
    if not isinstance(module, Linear):
        return Channels()
    return RowwiseParallel() if module.role in ("out", "down") else ColwiseParallel()


def refuse_cut(branch: nn.Module, name: str, module: nn.Module, dims: Dims, size: int) -> None:
    """Raise RequestError if a part of a branch cannot be cut into `size` pieces."""
    if isinstance(module, Linear) and module.role in ("out", "down"):
        return  # follows what comes in
    where = f"{type(branch).__name__}.{name}" if name else type(branch).__name__
    if not isinstance(module, Roled) or module.groups is None:
        raise RequestError(
            f"{SIZE}: {size}; {where} ({type(module).__name__}) cannot be cut: it does not say in how many `groups` "
            "its channels lie; allowed: 1"
        )
    if module.groups % size:
        raise RequestError(
            f"{SIZE}: {size} does not divide the {module.groups} groups of {where} (n_heads {dims.n_heads}, "
            f"n_kv_heads {dims.n_kv_heads}, hidden {dims.hidden}); allowed: divisors of {module.groups}"
        )
