"""A training step rehearsed without storage: what is alive in each of its phases, for a network of a few layers.

The step is the one that training takes: the objective's question, the forward pass under the run's precision, where
batches are accumulated while gradients of those before are there, the backward pass, clipping, and the optimizer.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from lit_small_lm.backbone import Backbone
from lit_small_lm.batch import Query
from lit_small_lm.context import Context, Visibility
from lit_small_lm.planning.ledger import Ledger
from lit_small_lm.planning.outline import Group, Outline
from lit_small_lm.planning.question import ask, with_tensors
from lit_small_lm.planning.workload import Workload

COMPUTED_IN = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""What autocast computes matrix products in, by precision."""
HELD_IN = {"bf16-true": torch.bfloat16, "16-true": torch.float16}
"""What weights are held in, where not in float32."""

Peak = tuple[int, int]
"""The most bytes alive at once, and the most in pooled tensors."""


@dataclass(frozen=True)
class StepBytes:
    """Bytes of a training step, on a process that holds all of the network."""

    weights: int
    gradients: int
    optimizer: int
    """The optimizer's state."""
    activations: int
    """What embedding and layers keep for the backward pass, the stream included."""
    head: int
    """What head and loss keep."""
    forward: int
    """The most that is alive at once in the forward pass, what stands above included."""
    backward: int
    update: int
    """The most during clipping and the optimizer's step."""
    forward_pooled: int
    """The most in each phase that is alive at once in tensors of at most `ledger.POOLED` bytes."""
    backward_pooled: int
    update_pooled: int

    def plus(self, other: "StepBytes", times: int) -> "StepBytes":
        """The sum with so many of another."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return StepBytes(*(mine + times * theirs for mine, theirs in pairs))


def rehearse(outline: Outline, workload: Workload) -> StepBytes:
    """The bytes of a training step of the whole network.

    A network of one layer of each kind is rehearsed, and for each kind one with a second: what that adds, so does every
    further one. Where what travels between layers grows with depth (layers that read all those before them), the whole
    depth is rehearsed.
    """
    groups = outline.groups
    if carry_grows(outline):
        return _shallow(outline, workload, dict.fromkeys(groups, outline.dims.n_layers))
    base = found = _shallow(outline, workload, dict.fromkeys(groups, 1))
    for group in groups:
        if group.count > 1:
            deeper = _shallow(outline, workload, {**dict.fromkeys(groups, 1), group: 2})
            found = found.plus(deeper.plus(base, -1), group.count - 1)
    return found


def carry_grows(outline: Outline) -> bool:
    """Whether a layer hands on more tensors than it got."""
    net = outline.sketch
    tokens = torch.zeros(1, 1, dtype=torch.long, device="meta")
    carry, ctx = net.open(net.embed(tokens)), Context(Visibility.rows(tokens, kind="bidirectional"))
    for layer in net.layers:
        before, carry = carry, layer(carry, ctx)
        if len(pytree.tree_leaves(carry)) > len(pytree.tree_leaves(before)):
            return True
    return False


def _shallow(outline: Outline, workload: Workload, most: Mapping[Group, int]) -> StepBytes:
    """The step of a network with up to so many layers of each kind."""
    indices = [index for group, count in most.items() for index in group.members[:count]]
    return step(lambda: outline.network(sorted(indices)), workload)


def step(build: Callable[[], Backbone], workload: Workload) -> StepBytes:
    """The bytes of a training step of the network that `build` makes on the meta device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that are not fused: nothing is computed
        try:
            return _Step(build(), workload, contextlib.nullcontext()).bytes()
        except (DataDependentOutputException, DynamicOutputShapeException):
            return _Step(build(), workload, _NoValues()).bytes()


class _NoValues(TorchFunctionMode):
    """Tells parts that need values, such as how many positions go to an expert, that there are none."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func == torch.Tensor.is_meta.__get__:
            return True
        return func(*args, **(kwargs or {}))


class _Step:
    """A step like all but the first: gradients and optimizer state are there."""

    def __init__(self, net: Backbone, workload: Workload, values: contextlib.AbstractContextManager[Any]) -> None:
        self.net, self.workload, self.values = net, workload, values
        self.ledger, self.fake = Ledger(), FakeTensorMode(allow_non_fake_inputs=True)
        self.query = ask(workload.objective, workload.rows, workload.seq_len, net.embed.num_embeddings)

    def bytes(self) -> StepBytes:
        """What is alive, and when."""
        net, workload, ledger = self.net, self.workload, self.ledger
        net.to(HELD_IN.get(workload.precision, torch.float32)).train()
        for layer in net.layers:
            layer.activation_checkpointing = workload.activation_checkpointing
        net.close.register_forward_pre_hook(self._at_close)
        with self.fake, ledger:
            net.to_empty(device="cpu")
            weights = ledger.bytes
            optimizer = workload.optim.build(list(net.named_roles()), fused=workload.precision != "16-mixed")
            for parameter in net.parameters():
                parameter.grad = torch.empty_like(parameter)
            optimizer.step()
            (forward, backward, update), pooled = zip(*self._peaks(optimizer), strict=True)
            state = _sizes(value for values in optimizer.state.values() for value in values.values())
        gradients = _sizes(parameter.grad for parameter in net.parameters())
        return StepBytes(
            weights=weights,
            gradients=gradients,
            optimizer=state,
            activations=self.closing - self.begun,
            head=self.ended - self.closing,
            forward=forward,
            backward=backward,
            update=update,
            forward_pooled=pooled[0],
            backward_pooled=pooled[1],
            update_pooled=pooled[2],
        )

    def _peaks(self, optimizer: torch.optim.Optimizer) -> tuple[Peak, Peak, Peak]:
        """Take a step; the most that was alive in each of its phases."""
        with self.values:
            if self.workload.accumulated == 1:
                optimizer.zero_grad()
            loss, forward = self._peak(self._loss)
            _, backward = self._peak(loss.backward)
        del loss
        _, update = self._peak(lambda: self._update(optimizer))
        return forward, backward, update

    def _peak(self, phase: Callable[[], Any]) -> tuple[Any, Peak]:
        self.ledger.mark()
        found = phase()
        return found, (self.ledger.peak, self.ledger.pooled_peak)

    def _loss(self) -> Tensor:
        self.begun, precision = self.ledger.bytes, COMPUTED_IN.get(self.workload.precision)
        query = _without_storage(self.fake, self.query)
        ctx = query.summed(step=self.fake.from_tensor(torch.tensor(1)))
        with torch.autocast("cpu", precision, enabled=precision is not None):
            self.net(query.tokens, ctx, query.targets, query.scored)
            terms = map(ctx.summing.of, ctx.trace.token_losses.values())
            loss = sum(terms, start=ctx.trace.nats) / query.tokens.numel() + sum(ctx.trace.losses.values())
            self.ended = self.ledger.bytes
        return loss

    def _at_close(self, module: Any, args: Any) -> None:
        self.closing = self.ledger.bytes

    def _update(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = [parameter.grad for parameter in self.net.parameters()]
        norm = torch.nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, (1 / (norm + 1e-6)).clamp(max=1))
        optimizer.step()


def _without_storage(fake: FakeTensorMode, query: Query) -> Query:
    visibility = with_tensors(query.visibility, fake.from_tensor)
    return with_tensors(dataclasses.replace(query, visibility=visibility), fake.from_tensor)


def _sizes(values: Iterable[Any]) -> int:
    """Bytes of the storages of all tensors among these; one that several share counts once."""
    storages = [value.untyped_storage() for value in values if isinstance(value, Tensor)]
    return sum({id(storage): storage.nbytes() for storage in storages}.values())
