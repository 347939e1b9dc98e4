"""Name maps of the parts that many public classes share: their tensors' names go in, entries come out."""

from lit_small_lm.hf.names import Entry, Grouped, Join, Same
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.mlp import MLP, GatedMLP
from lit_small_lm.nn.norms import LayerNorm
from lit_small_lm.plugin import Dims, Norm


def linear(ours: str, theirs: tuple[str, ...], bias: bool, join: Join | None = None) -> list[Entry]:
    """A linear map made of one of theirs or of several; `join` says how their rows come together."""
    kinds = ["weight", "bias"] if bias else ["weight"]
    return [Entry(f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs), join or Same()) for kind in kinds]


def norm(ours: str, theirs: str, spec: Norm) -> list[Entry]:
    """A norm's gain, and its bias if it has one."""
    return linear(ours, (theirs,), isinstance(spec, LayerNorm) and spec.shift == "bias")


def heads(dims: Dims) -> Grouped:
    """How queries, keys and values come together: key/value head by key/value head."""
    return Grouped(dims.n_kv_heads, (dims.n_heads // dims.n_kv_heads, 1, 1))


def attention(
    ours: str,
    theirs: str,
    spec: Attention,
    dims: Dims,
    out: str = "o_proj",
    norms: tuple[str, str] = ("q_norm", "k_norm"),
) -> list[Entry]:
    """Separate projections `q_proj`, `k_proj` and `v_proj`, with the norms of queries and keys if there are any."""
    parts = tuple(f"{theirs}.{letter}_proj" for letter in "qkv")
    found = linear(f"{ours}.qkv_proj", parts, spec.shift != "none", heads(dims))
    found += linear(f"{ours}.o_proj", (f"{theirs}.{out}",), spec.shift == "bias")
    if spec.qk_norm is not None:
        inner = ".norm" if spec.qk_norm_over == "width" else ""
        for letter, name in zip("qk", norms, strict=True):
            found += norm(f"{ours}.{letter}_norm{inner}", f"{theirs}.{name}", spec.qk_norm)
    return found


def gated(
    ours: str,
    theirs: str,
    spec: GatedMLP,
    groups: int,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> list[Entry]:
    """A gated MLP whose fused projection lies in `groups` of gate and up."""
    gate, up, down = (f"{theirs}.{name}" for name in names)
    bias = spec.shift == "bias"
    found = linear(f"{ours}.gate_up_proj", (gate, up), bias, Grouped(groups, (1, 1)))
    return found + linear(f"{ours}.down_proj", (down,), bias)


def plain(ours: str, theirs: str, spec: MLP, names: tuple[str, str]) -> list[Entry]:
    """A plain MLP."""
    bias = spec.shift == "bias"
    up, down = (f"{theirs}.{name}" for name in names)
    return linear(f"{ours}.up_proj", (up,), bias) + linear(f"{ours}.down_proj", (down,), bias)
