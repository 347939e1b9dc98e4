"""Memory of inference: weights in several formats, and what decoding keeps of the text so far.

Quantised formats hold scales beside their codes, and embedding, head, norms, convolutions and routers stay in 16 bits:
in small networks those are a large part, so "int4 is half a byte a parameter" may be off by a factor of two. The trick
for decoding memory is to let the network itself fill its cache, on the meta device, and to look at what is there.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_small_lm.context import Cache, Context, Visibility
from lit_small_lm.planning.counts import Parameters
from lit_small_lm.planning.flops import Watched
from lit_small_lm.planning.ledger import Ledger
from lit_small_lm.planning.outline import Outline
from lit_small_lm.roles import Linear

SCALE_BYTES = 2
"""Of one scale of a quantised group of weights."""
CACHE_DTYPE = torch.bfloat16
"""What decoding memory is counted in."""


@dataclass(frozen=True)
class Format:
    """How the matrices of the layers are held; `group` weights of a row share a scale, None: the whole row."""

    bits: int
    group: int | None = None

    def bytes_of(self, rows: int, columns: int) -> int:
        """Bytes of a matrix (rows, columns), scales included."""
        groups = 1 if self.group is None else -(-columns // self.group)
        return -(-rows * columns * self.bits // 8) + rows * groups * SCALE_BYTES


FORMATS: Mapping[str, Format] = {
    "int8 per row": Format(8),
    "int4 in groups of 32": Format(4, 32),
    "int4 in groups of 64": Format(4, 64),
    "int4 in groups of 128": Format(4, 128),
}


@dataclass(frozen=True)
class WeightMemory:
    """All weights in one format."""

    quantised_bytes: int
    """Of the matrices of the layers, scales included; 0 where nothing is quantised."""
    unquantised_bytes: int
    total_bytes: int
    bits_per_quantised_weight: float | None
    """Scales included; None where nothing is quantised."""
    bits_per_weight: float
    """Over all parameters."""


def weights(outline: Outline, counted: Parameters) -> dict[str, WeightMemory]:
    """The weights in float32, bfloat16 and every quantised format, the rest of those in bfloat16."""
    found = {name: _whole(counted.total + counted.buffers, size) for name, size in (("fp32", 4), ("bf16", 2))}
    shapes = _matrices(outline)
    count = sum(times * rows * columns for times, rows, columns in shapes)
    for name, form in FORMATS.items():
        codes = sum(times * form.bytes_of(rows, columns) for times, rows, columns in shapes)
        rest = 2 * (counted.total - count + counted.buffers)
        bits = 8 * (codes + rest) / counted.total
        found[name] = WeightMemory(codes, rest, codes + rest, 8 * codes / count if count else None, bits)
    return found


def _whole(count: int, size: int) -> WeightMemory:
    return WeightMemory(0, count * size, count * size, None, 8.0 * size)


def _matrices(outline: Outline) -> list[tuple[int, int, int]]:
    """(how many, rows, columns) of the linear maps of the layers, but for routers: small differences decide there."""
    found = []
    for group, layer in zip(outline.groups, outline.sketch.layers, strict=True):
        maps = [module for module in layer.modules() if isinstance(module, Linear) and module.role != "router"]
        found += [(group.count, *module.weight.shape) for module in maps]
    return found


@dataclass(frozen=True)
class CacheMemory:
    """What decoding keeps of one text, in bytes of 16-bit numbers; decoding in float32 takes twice that."""

    positions: int
    """Of prompt and continuation together."""
    per_token_bytes: int
    constant_bytes: int
    """Whatever the length: the last inputs of convolutions."""
    total_bytes: int
    """At `positions`, as allocated here: layers with a window keep everything too."""
    within_windows_bytes: int
    """At `positions`, if layers with a window kept no more than that."""


def cache(outline: Outline, positions: int) -> CacheMemory:
    """The decoding memory of a causal network."""
    size, net = CACHE_DTYPE.itemsize, outline.sketch
    growing = constant = within = 0
    tokens = torch.zeros(1, 1, dtype=torch.long, device="meta")
    for group, layer in zip(outline.groups, net.layers, strict=True):
        seen, watched = _Seen(1), Watched.of(Visibility.rows(tokens))
        with torch.no_grad():
            layer(net.open(net.embed(tokens)), Context(watched, seen))
        windows = [window for _, window in watched.masks if window is not None]
        growing += group.count * seen.growing
        constant += group.count * seen.constant
        within += group.count * seen.growing * min([positions, *windows])
    return CacheMemory(
        positions=positions,
        per_token_bytes=growing * size,
        constant_bytes=constant * size,
        total_bytes=(growing * positions + constant) * size,
        within_windows_bytes=(within + constant) * size,
    )


class _Seen(Cache):
    """A cache for one position that counts the numbers it is asked to keep."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.growing = self.constant = 0

    def keys_values(self, address, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.growing += k.numel() + v.numel()
        return super().keys_values(address, k, v)

    def left(self, address, h: Tensor, count: int) -> Tensor:
        self.constant += h.shape[0] * h.shape[2] * count
        return super().left(address, h, count)


def canvas(outline: Outline, positions: int) -> int:
    """Bytes that a network which looks both ways needs beside its weights to fill in one text of this length, in 16-bit
    numbers: the most that is alive in a pass, the logits included. Nothing is kept from pass to pass."""
    net = outline.network([group.index for group in outline.groups]).to(CACHE_DTYPE).eval()
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), Ledger() as ledger:
        net.to_empty(device="cpu")
        tokens = torch.zeros(1, positions, dtype=torch.long)
        ledger.mark()
        begun = ledger.bytes
        net(tokens, Context(Visibility.rows(tokens, kind="bidirectional")))
    return ledger.peak - begun
