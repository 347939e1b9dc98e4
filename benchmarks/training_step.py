"""Training tokens per second against transformers' Llama of the same shape, side by side in one run.

    python benchmarks/training_step.py [--compile] [--quick]    one JSON line; needs the extra [hf]

Both take the same optimizer (fused AdamW), batches and loss; ours also isolates packed documents in a second variant.
"""

import json
import platform
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.shapes import FixedShape

VOCAB = 4096
B, T, STEPS, ROUNDS = (1, 8, 1, 1) if "--quick" in sys.argv else (8, 256, 3, 3)


def ours(device: str, documents: bool):
    """A training loss of this package's Llama; `documents`: two packed documents a row, isolated."""
    shape = FixedShape(dim=256, n_layers=8, n_heads=8, hidden=688)
    net = Backbone(BackboneSpec(), shape.resolve(), VOCAB).to(device)
    if "--compile" in sys.argv:
        net.compile()
    doc_ids = (torch.arange(T, device=device) >= T // 2).long().expand(B, T) if documents else None

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        row = tokens[:, :-1]
        return net(row, Context(Visibility.rows(row, doc_ids)), tokens[:, 1:]).mean()

    return net, loss


def theirs(device: str):
    """The same by transformers."""
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=256, num_hidden_layers=8, num_attention_heads=8, intermediate_size=688,
        tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    net = LlamaForCausalLM(config).to(device)
    if "--compile" in sys.argv:
        net.compile()
    return (
        net,
        lambda tokens: (
            net(input_ids=tokens[:, :-1], labels=tokens[:, :-1], shift_labels=tokens[:, 1:].contiguous()).loss
        ),
    )


def rate(net: torch.nn.Module, loss, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> float:
    """Tokens per second over a few steps."""
    started = time.perf_counter()
    for _ in range(STEPS):
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=batch.device.type == "cuda"):
            value = loss(batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
    value.item()
    return STEPS * B * T / (time.perf_counter() - started)


def main() -> None:
    """Measure all in turn, and print the medians and ratios."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    batch = torch.randint(3, VOCAB, (B, T + 1), device=device)
    made = {"transformers": theirs(device), "ours": ours(device, False), "ours_packed": ours(device, True)}
    optimizers = {name: torch.optim.AdamW(net.parameters(), fused=True) for name, (net, _) in made.items()}
    for name, (net, loss) in made.items():
        rate(net, loss, optimizers[name], batch)
    rounds = [{name: rate(*made[name], optimizers[name], batch) for name in made} for _ in range(ROUNDS)]
    medians = {name: sorted(r[name] for r in rounds)[ROUNDS // 2] for name in made}
    record = {"benchmark": "training_step", "device": device, "compiled": "--compile" in sys.argv}
    record |= {f"{name}_tokens_per_second": round(value) for name, value in medians.items()}
    record |= {f"{name}_ratio": round(medians[name] / medians["transformers"], 2) for name in ("ours", "ours_packed")}
    print(json.dumps({**record, "threads": torch.get_num_threads(), "machine": platform.machine()}))


if __name__ == "__main__":
    main()
