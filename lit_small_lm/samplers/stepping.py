"""How the step that draws a token is run: operation by operation, as one CUDA graph, or compiled.

Decoding small models is bound by the launch of operations, not by their work. A graph launches all of a step at once;
compiled, there are fewer of them, too (as gpt-fast, pytorch-labs 2023). Both need a step that takes no arguments, keeps
everything it changes in place, and always has the same shapes.
"""

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import _has_any_global_hook

from lit_small_lm.errors import RequestError

Stepping = Literal["eager", "graph", "compiled"]
Step = Callable[[], None]
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
WARM = 3
"""Steps before a graph is captured, in which libraries allocate what they need. They count: their tokens are kept."""


@contextlib.contextmanager
def at_hand(net: Any) -> Iterator[None]:
    """While it lasts, what the modules of a network hold is found at once, and those without hooks are called at once.

    PyTorch looks for submodules and parameters where all else has failed, and for hooks at every call, either of which
    takes as long as a small operation. A network must not be copied, or given hooks or parametrizations, in the
    meantime. One of which parts are compiled stays as it is, or they would be compiled anew; so do all where hooks are
    set for all modules.
    """
    modules = list(net.modules()) if isinstance(net, nn.Module) else []
    if _has_any_global_hook() or any(module._compiled_call_impl is not None for module in modules):
        modules = []
    added = [(vars(module), _sought(module)) for module in modules]
    for held, parts in added:
        held.update(parts)
    try:
        yield
    finally:
        for held, parts in added:
            _take_out(held, parts)


def _take_out(held: dict[str, Any], parts: dict[str, Any]) -> None:
    """Take parts out again, and not what somebody has put in their place."""
    for name, part in parts.items():
        if held.get(name) is part:
            del held[name]


def _sought(module: nn.Module) -> dict[str, Any]:
    """Attributes of a module that are not found at once; those of its parameters that are plain tensors."""
    held = vars(module)
    parts: dict[str, Any] = {name: p for name, p in module._parameters.items() if p is None or type(p) is nn.Parameter}
    parts.update(module._modules)
    if not any(held[kind] for kind in HOOKS):
        parts["_compiled_call_impl"] = module.forward  # what is called if it is there, whatever the hooks
    return {name: part for name, part in parts.items() if name not in held}


def stepper(how: Stepping, step: Step, device: torch.device) -> Step:
    """The same step, run this way.

    Raises:
        RequestError: a graph is asked for where there is none.
    """
    if how == "graph" and device.type != "cuda":
        raise RequestError(f"sampler.step: graph; the network is on {device.type}; allowed there: eager, compiled")
    if how == "compiled":
        step = _fused(step, device)
    return Graph(step) if how != "eager" and device.type == "cuda" else step


def _fused(step: Step, device: torch.device) -> Step:
    """The step compiled. On CUDA products of one row become reductions, which are as fast as memory, and so does
    attention, whose own kernels are made for many queries."""
    if device.type != "cuda":
        return torch.compile(step, dynamic=False)
    found = torch.compile(step, dynamic=False, backend=reducing)

    def run() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            found()

    return run


def reducing(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """A backend of torch.compile: its usual one, which makes reductions of products of one row where they have no
    bias."""
    from torch import _inductor

    bias_apart(graph)
    return _inductor.compile(graph, list(inputs), options={"coordinate_descent_tuning": True})


def bias_apart(graph: GraphModule) -> None:
    """Linear maps of a traced graph add their bias behind the product."""
    for node in graph.graph.find_nodes(op="call_function", target=F.linear):
        h, weight, bias = (*node.args, *node.kwargs.values(), None)[:3]
        if bias is not None:
            with graph.graph.inserting_before(node):
                product = graph.graph.call_function(F.linear, (h, weight))
            node.target, node.args, node.kwargs = operator.add, (product, bias), {}
    graph.recompile()


class Graph:
    """A step as a CUDA graph: run as it is `WARM` times on a stream of its own, then captured, then replayed."""

    def __init__(self, step: Step) -> None:
        self.step, self.left = step, WARM
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self.left:
            self._warm()
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):  # records, and runs nothing
                self.step()
        self.graph.replay()

    def _warm(self) -> None:
        self.left -= 1
        own, current = torch.cuda.Stream(), torch.cuda.current_stream()
        own.wait_stream(current)
        with torch.cuda.stream(own):
            self.step()
        current.wait_stream(own)
