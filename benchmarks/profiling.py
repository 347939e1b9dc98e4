"""Where a training step's processor time goes, in one thread, by kind of work.

    python benchmarks/profiling.py [--shape S1 S2] [--peer loop module module_compiled] [--table] [--quick]

prints one JSON line for each peer of each shape, or one table of all of them; `loop` needs the extra [hf]. Peers are
those of `measuring/peer.py`. Per cents are of the self time that torch's profiler finds over a few steps.
"""

import argparse
import itertools
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measuring.cases import CASES
from measuring.peer import steps_of
from measuring.record import say
from measuring.text import write
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from lit_small_lm.batch import Batch

WARM = 2
PRODUCTS = (
    "aten::mm", "aten::addmm", "aten::bmm", "aten::_mm", "mkldnn", "mkl::", "lit_small_lm::product",
    "lit_small_lm::nll_and_gradients",
)  # fmt: skip
"""How names begin; the last one is the kernel of the head's loss, whose cross entropy is not apart."""
ATTENTION = ("scaled_dot_product", "flash_attention", "lit_small_lm::attention", "lit_small_lm::piecewise_attention")
KINDS = {
    "attention": ATTENTION,
    "cross entropy": ("log_softmax", "nll_loss", "logsumexp", "cross_entropy"),
    "optimizer": ("adamw", "Optimizer."),
    "clipping": ("norm", "foreach"),
    "copies, layout, zeroes": ("copy_", "clone", "zero", "fill_", "aten::cat", "empty", "embedding", "index"),
    "elementwise": (
        "aten::mul", "aten::add", "aten::sub", "aten::div", "aten::neg", "aten::silu", "aten::sigmoid", "aten::pow",
        "aten::mean", "aten::sum", "aten::rsqrt", "aten::exp", "aten::tanh", "aten::where", "cpp_fused",
        "Call CompiledFxGraph",
    ),
}  # fmt: skip
"""Parts of the names of operations; the first kind that has one takes it."""
ORDER = ("products of the layers", "products of the head", *KINDS, "python, dispatch, autograd")


def kind_of(names: Sequence[str], shapes: Iterable[Sequence[int]], vocab_size: int) -> str:
    """The kind of work of an operation with inputs of these shapes; behind its own name those of what called it, since
    attention is made of many operations."""
    if any(part in name for name in names for part in ATTENTION):
        return "attention"
    name = names[0]
    if name.startswith(PRODUCTS):
        return ORDER[any(vocab_size in shape for shape in shapes)]
    found = (kind for kind, parts in KINDS.items() if any(part in name for part in parts))
    return next(found, ORDER[-1])


def shares(peer: str, shape: str, batches: Sequence[Batch]) -> dict[str, float]:
    """Per cent of a step's self time by kind."""
    case = CASES[shape]
    step = steps_of(peer, case)
    for number, batch in enumerate(batches[:WARM]):
        step(batch, number)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        for number, batch in enumerate(batches[WARM:], WARM):
            step(batch, number)
    spent = Counter()
    for event in found.events():
        given = [given for given in event.input_shapes if isinstance(given, (list, tuple))]
        spent[kind_of(list(_outwards(event)), given, case.vocab_size)] += event.self_cpu_time_total
    return {kind: round(100 * spent[kind] / spent.total(), 1) for kind in ORDER}


def _outwards(event: FunctionEvent) -> Iterator[str]:
    """Its name, and those of all that it was called by."""
    while event is not None:
        yield event.name
        event = event.cpu_parent


def table(columns: dict[str, dict[str, float]]) -> str:
    """A column for each peer and shape."""
    rows = [["per cent of a step", *columns], ["---"] * (1 + len(columns))]
    rows += [[kind, *(str(column[kind]) for column in columns.values())] for kind in ORDER]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Profile what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=CASES, default=["S1", "S2"])
    parser.add_argument("--peer", nargs="+", default=["loop", "module"])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--label", help="what the column is called; default: the peer")
    parser.add_argument("--table", action="store_true", help="print a table instead of lines")
    parser.add_argument("--quick", action="store_true", help="a tiny network, one step")
    asked = parser.parse_args()
    if asked.quick:
        asked.shape, asked.peer, asked.steps = ["tiny"], ["module"], 1
    columns = {}
    with tempfile.TemporaryDirectory() as made:
        for shape, peer in itertools.product(asked.shape, asked.peer):
            file = Path(made) / f"{shape}.pt"
            if not file.exists():
                write(shape, WARM + asked.steps, Path(made) / "c", file)
            found = shares(peer, shape, torch.load(file, weights_only=False))
            columns[f"{shape} {asked.label or peer}"] = found
            if not asked.table:
                say("profiling", {"shape": shape, "peer": peer, "label": asked.label or peer, "percent": found})
    if asked.table:
        print(table(columns))


if __name__ == "__main__":
    main()
