"""One measuring pass through a network: the figures of every layer, whatever its norm scheme, mixer and FFN.

The pass is eager, without gradients and in evaluation mode, and leaves nothing behind: no hook, no random draw, no
compiled graph. The one trick is how a branch's part is found: its path is run again with a silent branch, and what
differs is what the branch has written, after all norms, factors and gates of the scheme.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lit_small_lm.backbone import Backbone, Layer
from lit_small_lm.context import Branch, Context
from lit_small_lm.nn.routers import Usage
from lit_small_lm.plugin import Linear, Query, Routing
from lit_small_lm.residual_stream import stream, streams
from lit_small_lm.roles import Sparse
from lit_small_lm.sharding import local
from lit_small_lm.training.callbacks.depth_figures import (
    attention_entropy,
    dead_units,
    root_mean_square,
    turn,
    update_ratio,
    variance,
)

QUERIES = 32
"""Query positions of a row, evenly spaced, whose attention is looked at."""
EXPERTS = ("load_imbalance", "load_entropy", "dead_experts")
"""What is said of a mixture of experts, as `Usage.metrics` defines it."""
Figures = dict[tuple[str, int], Tensor]
"""(name, layer) -> (2,) a sum over positions and the number of them, so that processes add up."""


@torch.no_grad()
def measure(net: Backbone, query: Query, ctx: Context, groups: Mapping[str, Tensor]) -> Figures:
    """The figures of every layer, from one pass over `query.tokens` (B, T).

    Args:
        net: the network, compiled or not, sharded or not; every process has to ask.
        query: what an objective asks.
        ctx: its context, with the step of the training.
        groups: name -> (B, T) booleans, positions whose angular distance is given by themselves as well.
    """
    probes, ctx = Probes(net, query, groups), dataclasses.replace(ctx, attention="dense")
    with isolate_rng(), torch.compiler.set_stance("force_eager"), evaluating(net), probes.attached():
        net(query.tokens, ctx, scored=query.tokens.new_zeros(1))  # the head is asked for one position
    return probes.figures


@contextlib.contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode, and then every module in the mode that it was in."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class Probes:
    """What one forward pass is looked at with.

    Args:
        net: the network.
        query: what it will be asked.
        groups: as for `measure`.
    """

    def __init__(self, net: Backbone, query: Query, groups: Mapping[str, Tensor]) -> None:
        self.net, self.visibility = net, query.visibility
        self.shape = (*query.tokens.shape, net.dims.dim)
        docs = self.visibility.doc_ids
        self.counted = torch.ones_like(query.tokens, dtype=torch.bool) if docs is None else docs >= 0
        self.groups = {name: chosen & self.counted for name, chosen in groups.items()}
        self.layer = 0
        self.before: Tensor | None = None
        """The stream that the current layer has received."""
        self.reached: Tensor | None = None
        """The stream as far as its branches have written."""
        self.figures: Figures = {}

    def note(self, name: str, values: Tensor, chosen: Tensor | None = None) -> None:
        """Keep values (B, T) of the positions that count, or of the `chosen` ones of them, for the current layer."""
        chosen = self.counted if chosen is None else chosen
        total = torch.where(chosen, values.double(), 0.0).sum()
        self.figures[name, self.layer] = torch.stack([total, chosen.sum().double()])

    def note_one(self, name: str, value: Tensor) -> None:
        """Keep one number of the current layer."""
        self.figures[name, self.layer] = torch.stack([value.double(), torch.ones_like(value, dtype=torch.float64)])

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Within it every forward pass is looked at."""
        with contextlib.ExitStack() as stack:
            for index, layer in enumerate(self.net.layers):
                for handle in self._hooks(index, layer):
                    stack.callback(handle.remove)
            stack.enter_context(AttentionCalls(self.attention))
            yield

    def _hooks(self, index: int, layer: Layer) -> Iterator[Any]:
        yield layer.register_forward_pre_hook(lambda _, args: self.enter(index, args[0]))
        yield layer.mixer_path.register_forward_hook(lambda *call: self.path("mixer", *call))
        yield layer.ffn_path.register_forward_hook(lambda *call: self.path("ffn", *call))
        yield layer.register_forward_hook(lambda _, args, carry: self.leave(carry))
        for linear in last_maps(layer.ffn):
            yield linear.register_forward_pre_hook(lambda _, args: self.hidden(local(args[0])))
        for router, n_experts in routers(layer.ffn):
            yield router.register_forward_hook(lambda _, args, out, count=n_experts: self.routing(out, count))

    def stream(self, carry: Any) -> Tensor | None:
        """The stream (B, T, D) of a carry; None if there is none of this shape."""
        return stream(carry, self.shape)

    def enter(self, index: int, carry: Any) -> None:
        """A layer begins."""
        self.layer, self.before = index, self.stream(carry)
        self.reached = self.before

    def leave(self, carry: Any) -> None:
        """A layer ends: what it has made of the stream."""
        after = self.stream(carry)
        if self.before is None or after is None:
            return
        angle, influence = turn(self.before, after)
        self.note("variance", variance(after))
        self.note("angular_distance", angle)
        self.note("block_influence", influence)
        for name, chosen in self.groups.items():
            self.note(f"angular_distance_{name}", angle, chosen)

    def path(self, place: str, path: nn.Module, args: tuple[Any, Branch], carry: Any) -> None:
        """A branch has run: its input, and what it has written into the stream that it found."""
        given, branch = args
        inputs: list[Tensor] = []

        def silent(h: Tensor) -> Tensor:
            inputs.append(h)
            return torch.zeros_like(h)

        without = streams(path.forward(given, Branch(silent, branch.ctx)), self.shape)
        found = streams(carry, self.shape)
        for h in inputs:
            self.note(f"{place}_input", root_mean_square(h))
        if self.reached is None or not found:
            return
        change = sum(new - old for new, old in zip(found, without, strict=True))
        self.note(f"{place}_update", update_ratio(change, self.reached))
        self.reached = found[0] if len(found) == 1 else self.reached + change

    def attention(self, q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> None:
        """Attention runs: q (B, H, T, K), k (B, G, S, K), mask as PyTorch's kernel takes it."""
        if (q.shape[0], q.shape[2]) != self.shape[:2]:
            return
        at = torch.arange(0, q.shape[2], -(-q.shape[2] // QUERIES), device=q.device)  # (Q,)
        if causal:
            mask = torch.arange(k.shape[2], device=q.device) <= at.unsqueeze(1)  # (Q, S)
        elif mask is not None and mask.shape[-2] > 1:
            mask = mask.index_select(-2, at)
        self.note("attention_entropy", attention_entropy(q[:, :, at], k, mask, scale), self.counted[:, at])

    def hidden(self, hidden: Tensor) -> None:
        """An FFN's units (B, T, F), just before the last map."""
        if hidden.shape[:2] == self.shape[:2]:
            self.note_one("dead_units", dead_units(hidden, self.counted))

    def routing(self, routing: Any, n_experts: int) -> None:
        """A router has chosen."""
        if not isinstance(routing, Routing):
            return
        scores = routing.weights.new_zeros(len(routing.experts), n_experts)
        found = Usage.of(routing.experts, scores, self.visibility).metrics(routing.weights)
        for name in EXPERTS:
            self.note_one(name, found[name])


class AttentionCalls(TorchFunctionMode):
    """Within it `note(q, k, mask, causal, scale)` is told of every call of PyTorch's attention, whoever makes it."""

    def __init__(self, note: Callable[[Tensor, Tensor, Tensor | None, bool, float | None], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._tell(*args, **kwargs)
        return func(*args, **kwargs)

    def _tell(
        self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
    ) -> None:
        self.note(query, key, attn_mask, is_causal, scale)


def last_maps(ffn: nn.Module) -> list[nn.Module]:
    """The maps out of a hidden width in an FFN; those of experts see chosen positions only and are left out."""
    experts = {inner for module in ffn.modules() if isinstance(module, Sparse) for inner in module.modules()}
    return [m for m in ffn.modules() if isinstance(m, Linear) and m.role == "down" and m not in experts]


def routers(ffn: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """What stands beside experts in an FFN and may choose them, with their number."""
    for module in ffn.modules():
        parts = list(module.children())
        counts = [len(part) for part in parts if isinstance(part, Sparse)]
        yield from ((part, count) for count in counts for part in parts if not isinstance(part, Sparse))
