"""Feed-forward networks: gated (SwiGLU and kin, arXiv 2002.05202) and plain."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from lit_small_lm.context import Context
from lit_small_lm.plugin import FFN, Linear, Site, setting
from lit_small_lm.roles import TwoMaps

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda h: F.gelu(h, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda h: F.relu(h).square(),
}
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class GatedMLP(FFN):
    """down(activation(gate(h)) * up(h)); SwiGLU with the default activation."""

    activation: Activation = "silu"
    """Applied to the gate."""
    shift: Literal["bias", "none"] = "none"
    """Whether the projections have biases."""
    canon_span: Literal["gate_up", "hidden"] = "gate_up"
    """What Canon D mixes: gate and up before they meet, as its authors do, or their product (Dhara-250M)."""
    dropout: float = setting(0.0, low=0, below=1, unit="probability")
    """On the output, while training."""

    def build(self, site: Site) -> nn.Module:
        return GatedFFN(self, site)


class GatedFFN(TwoMaps):
    """h (B, T, D) -> (B, T, D) through one fused projection, in groups of gate and up."""

    def __init__(self, spec: GatedMLP, site: Site) -> None:
        super().__init__()
        hidden, bias = site.dims.hidden, spec.shift == "bias"
        self.activation, self.dropout = ACTIVATIONS[spec.activation], spec.dropout
        groups = site.dims.groups_of(hidden)
        self.width = hidden // groups
        self.gate_up_proj = Linear(site.dim, 2 * hidden, role="gate_up", bias=bias, groups=groups)
        spans_both = spec.canon_span == "gate_up"
        self.canon = site.tap("D", 2 * hidden) if spans_both else None
        self.canon_hidden = None if spans_both else site.tap("D", hidden)
        self.down_proj = Linear(hidden, site.dim, role="down", bias=bias)

    def maps(self) -> tuple[Linear, Linear]:
        return self.gate_up_proj, self.down_proj

    def run(self, h: Tensor, ctx: Context, into: Map, out_of: Map) -> Tensor:
        joined = into(h)
        joined = joined if self.canon is None else self.canon(joined, ctx)
        gate, up = joined.unflatten(-1, (-1, 2 * self.width)).chunk(2, -1)  # (B, T, G, F/G) each
        hidden = (self.activation(gate) * up).flatten(-2)  # (B, T, F)
        hidden = hidden if self.canon_hidden is None else self.canon_hidden(hidden, ctx)
        out = out_of(hidden)
        return F.dropout(out, self.dropout) if self.training else out


@dataclass(frozen=True, kw_only=True)
class MLP(FFN):
    """down(activation(up(h))): GPT-2's with bias."""

    activation: Activation = "gelu_tanh"
    """Between the two projections."""
    shift: Literal["bias", "none"] = "none"
    """Whether the projections have biases."""
    dropout: float = setting(0.0, low=0, below=1, unit="probability")
    """On the output, while training."""

    def build(self, site: Site) -> nn.Module:
        return PlainFFN(self, site)


class PlainFFN(TwoMaps):
    """h (B, T, D) -> (B, T, D); Canon D spans the hidden width."""

    def __init__(self, spec: MLP, site: Site) -> None:
        super().__init__()
        hidden, bias = site.dims.hidden, spec.shift == "bias"
        self.activation, self.dropout = ACTIVATIONS[spec.activation], spec.dropout
        self.up_proj = Linear(site.dim, hidden, role="up", bias=bias, groups=hidden)
        self.canon = site.tap("D", hidden)
        self.down_proj = Linear(hidden, site.dim, role="down", bias=bias)

    def maps(self) -> tuple[Linear, Linear]:
        return self.up_proj, self.down_proj

    def run(self, h: Tensor, ctx: Context, into: Map, out_of: Map) -> Tensor:
        h = self.activation(self.canon(into(h), ctx))  # (B, T, F)
        out = out_of(h)
        return F.dropout(out, self.dropout) if self.training else out
