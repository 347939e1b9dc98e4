"""How the step that draws a token is run: operation by operation, as one CUDA graph, or compiled.

Decoding small models is bound by the launch of operations, not by their work. A graph launches all of a step at once;
compiled, there are fewer of them, too (as gpt-fast, pytorch-labs 2023). Both need a step that takes no arguments, keeps
everything it changes in place, and always has the same shapes.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lit_small_lm.errors import RequestError

Stepping = Literal["eager", "graph", "compiled"]
Step = Callable[[], None]
WARM = 3
"""Steps before a graph is captured, in which libraries allocate what they need. They count: their tokens are kept."""


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
