"""The shapes that are trained: those of the performance anchors, and a tiny one where only overhead is left."""

from typing import NamedTuple

BF16 = "_bf16"
"""Part of the names of peers that train in bfloat16."""


class Case(NamedTuple):
    """A Llama and the rows of a step."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden: int
    vocab_size: int
    rows: int
    length: int

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.rows * self.length

    def mflop(self, parameters: int) -> float:
        """Millions of operations of a training step for each token: 6N (tied matrix once) and 12LDT for attention."""
        return (6 * parameters + 12 * self.n_layers * self.dim * self.length) / 1e6


CASES = {
    "S1": Case(256, 8, 8, 8, 688, 4096, rows=8, length=256),
    "S2": Case(384, 32, 8, 4, 1024, 50304, rows=4, length=256),
    "tiny": Case(64, 2, 2, 2, 128, 512, rows=4, length=32),
}
"""S1: 7.4M parameters, S2: 71M, tiny: 0.1M; embedding and head are tied."""


def precision(peer: str) -> str:
    """A peer's, by the name that Lightning has for it."""
    return "bf16-mixed" if BF16 in peer else "32-true"
