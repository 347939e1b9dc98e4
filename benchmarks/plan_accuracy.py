"""What `plan` predicts against what happens: peak memory of training steps on a CPU, and operations of a forward pass.

    python benchmarks/plan_accuracy.py [--quick | --others]    one JSON line, and the same as a table on standard error

Memory: every network trains for five steps in a process of its own, through the same Trainer and LightningModule as
`fit`, with AdamW. Measured is how far the process's resident memory rises, at its highest, above what it was before
the network was built, after a tiny run has loaded every library. `free_share` is what the heap holds free, as a share
of the tensors that come out of it; `--others` takes other networks, from which `planning.memory.SLACK` was taken.
Operations: those that PyTorch's counter sees, with attention in plain products.
"""

import dataclasses
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.cli.lit import quiet
from lit_small_lm.context import Context, Visibility
from lit_small_lm.data.datamodule import TokenData
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.data.tokenizer import ByteEncoder
from lit_small_lm.nn.attention import Attention, plain_attention
from lit_small_lm.nn.mlp import MLP, GatedMLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.norms import LayerNorm
from lit_small_lm.nn.peri_norm import PeriNorm
from lit_small_lm.nn.positions import Learned
from lit_small_lm.nn.residual import PreNorm
from lit_small_lm.nn.routers import SoftmaxRouter
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.planning.counts import parameters
from lit_small_lm.planning.flops import flops
from lit_small_lm.planning.memory import SLACK, TrainingMemory, training
from lit_small_lm.planning.outline import Outline
from lit_small_lm.planning.workload import Workload
from lit_small_lm.plugin import Tokenizer, setting
from lit_small_lm.shapes import FixedShape
from lit_small_lm.training.lit import AutoregressiveLM
from lit_small_lm.training.optim import AdamW

QUICK = "--quick" in sys.argv
GPT2 = BackboneSpec(
    norm=PreNorm(norm=LayerNorm()),
    layer=LayerSpec(mixer=Attention(shift="bias"), ffn=MLP(shift="bias")),
    positions=Learned(),
)
MIXTURE = MoE(expert=GatedMLP(), router=SoftmaxRouter(top_k=2), n_experts=8)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network and the rows it is trained on."""

    backbone: BackboneSpec = BackboneSpec()
    shape: FixedShape
    vocab_size: int = 8192
    rows: int = 8
    seq_len: int = 256
    precision: str = "32-true"


CASES = {
    "GPT-2-like": Case(backbone=GPT2, shape=FixedShape(dim=512, n_layers=12, n_heads=8, hidden=2048)),
    "Llama, grouped queries": Case(
        shape=FixedShape(dim=512, n_layers=12, n_heads=8, n_kv_heads=2), precision="bf16-mixed"
    ),
    "mixture of experts": Case(
        backbone=BackboneSpec(layer=LayerSpec(ffn=MIXTURE)),
        shape=FixedShape(dim=384, n_layers=8, n_heads=6, hidden=768),
    ),
    "Canon ABCD": Case(backbone=BackboneSpec(canon_at="ABCD"), shape=FixedShape(dim=384, n_layers=12, n_heads=6)),
    "deep and narrow": Case(shape=FixedShape(dim=128, n_layers=64, n_heads=4), vocab_size=4096),
    "large vocabulary": Case(shape=FixedShape(dim=256, n_layers=4, n_heads=4), vocab_size=65536),
}
OTHERS = {
    "GPT-2-like, short rows": Case(
        backbone=GPT2,
        shape=FixedShape(dim=384, n_layers=16, n_heads=6, hidden=1536),
        vocab_size=4096,
        rows=16,
        seq_len=128,
    ),
    "Llama, wide": Case(shape=FixedShape(dim=768, n_layers=6, n_heads=12), rows=4, seq_len=512),
    "Llama, bf16": Case(shape=FixedShape(dim=384, n_layers=16, n_heads=6, n_kv_heads=3), precision="bf16-mixed"),
    "short convolutions": Case(
        backbone=BackboneSpec(
            layer=LayerSpec(mixer=ShortConv()), more_layers={"seen": LayerSpec()}, pattern=("layer", "seen")
        ),
        shape=FixedShape(dim=512, n_layers=10, n_heads=8),
    ),
    "Peri-LN, Canon AC, bf16": Case(
        backbone=BackboneSpec(norm=PeriNorm(), canon_at="AC"),
        shape=FixedShape(dim=448, n_layers=12, n_heads=7),
        precision="bf16-mixed",
    ),
    "mixture, long rows": Case(
        backbone=BackboneSpec(layer=LayerSpec(ffn=MIXTURE)),
        shape=FixedShape(dim=512, n_layers=6, n_heads=8, hidden=512),
        rows=4,
        seq_len=512,
    ),
}
"""Of which `planning.memory.SLACK` is the mean share."""
SMALL = {"small": Case(shape=FixedShape(dim=128, n_layers=2, n_heads=2), vocab_size=512, seq_len=128)}
TAKEN = SMALL if QUICK else OTHERS if "--others" in sys.argv else CASES
TINY = Case(shape=FixedShape(dim=16, n_layers=1, n_heads=2), vocab_size=512, rows=2, seq_len=16)


@dataclass(frozen=True, kw_only=True)
class ManyIds(Tokenizer):
    """Bytes with a vocabulary of any size."""

    vocab_size: int = setting(512, low=259)

    def learn(self, texts):
        return ManyIdsEncoder(self.vocab_size)

    def restore(self, record):
        return ManyIdsEncoder(int(record["vocab_size"]))


class ManyIdsEncoder(ByteEncoder):
    """Byte b is id b + 3; ids beyond them never occur."""

    def __init__(self, vocab_size: int) -> None:
        self.specials = ByteEncoder.specials._replace(vocab_size=vocab_size)

    def record(self):
        return {"type": "many ids", "vocab_size": self.specials.vocab_size}


def train(case: Case, folder: Path) -> None:
    """Five optimizer steps."""
    module = AutoregressiveLM(case.backbone, case.shape)
    data = TokenData(
        source=TextFiles(path=str(folder)),
        tokenizer=ManyIds(vocab_size=case.vocab_size),
        seq_len=case.seq_len,
        batch_size=case.rows,
        cache_dir=str(folder / "cache"),
    )
    trainer = Trainer(
        max_steps=5, accelerator="cpu", precision=case.precision, gradient_clip_val=1.0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, data)


def resident(field: str) -> int:
    """Bytes: "VmRSS" of now, "VmHWM" at the highest."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(name: str) -> None:
    """In a process of its own: print how far training raises the resident memory."""
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 2000)
        case = {**SMALL, **CASES, **OTHERS}[name]
        train(dataclasses.replace(TINY, precision=case.precision, backbone=case.backbone), Path(folder))
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
        before = resident("VmRSS")
        train(case, Path(folder))
    print(resident("VmHWM") - before)


def memory_of(name: str) -> tuple[TrainingMemory, int]:
    """What is predicted, and the bytes measured."""
    case = TAKEN[name]
    workload = Workload(
        optim=AdamW(), seq_len=case.seq_len, batch_size=case.rows, rows=case.rows, precision=case.precision
    )
    predicted = training(Outline(case.backbone, case.shape.resolve(), case.vocab_size), workload)
    command = [sys.executable, __file__, "--measure", name]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True, text=True
    )
    return predicted, int(done.stdout.split()[-1])


def flops_of(case: Case) -> tuple[int, int]:
    """Operations of a forward pass over one row, predicted and counted."""
    outline = Outline(case.backbone, case.shape.resolve(), case.vocab_size)
    predicted = case.seq_len * flops(outline, parameters(outline), case.seq_len).forward_per_token
    net = Backbone(case.backbone, case.shape.resolve(), case.vocab_size)
    tokens = torch.randint(3, 259, (1, case.seq_len))
    fused, F.scaled_dot_product_attention = F.scaled_dot_product_attention, _plainly
    try:
        with FlopCounterMode(display=False) as counter:
            net(tokens, Context(Visibility.rows(tokens)))
    finally:
        F.scaled_dot_product_attention = fused
    return predicted, counter.get_total_flops()


def _plainly(q, k, v, mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    mask = torch.ones(1, 1, q.shape[2], k.shape[2], dtype=torch.bool).tril() if mask is None else mask
    return plain_attention(q, k, v, mask, scale=scale)


def main() -> None:
    """Predict and measure every case, and print."""
    table = []
    for name, case in TAKEN.items():
        predicted, measured = memory_of(name)
        wanted, counted = flops_of(case)
        alive = predicted.total_bytes - predicted.allocator_bytes
        table.append({
            "case": name,
            "predicted_mb": round(predicted.total_bytes / 1e6),
            "measured_mb": round(measured / 1e6),
            "memory_ratio": round(predicted.total_bytes / measured, 3),
            "free_share": round((measured - alive) / (predicted.allocator_bytes / SLACK), 3),
            "flops_ratio": round(wanted / counted, 6),
        })  # fmt: skip
        line = "{case:24} {predicted_mb:6} {measured_mb:6} {memory_ratio:6} {free_share:6} {flops_ratio:9}"
        print(line.format(**table[-1]), file=sys.stderr)
    record = {"benchmark": "plan_accuracy", "device": "cpu", "torch": torch.__version__, "machine": platform.machine()}
    print(json.dumps({**record, "table": table}))


if __name__ == "__main__":
    if "--measure" in sys.argv:
        measure(sys.argv[sys.argv.index("--measure") + 1])
    else:
        main()
