"""One way of training a shape, in a process of its own: `python measuring/peer.py NAME CASE BATCHES`.

    loop           transformers' Llama in a plain PyTorch loop; loop_compiled
    litgpt         litgpt's, with the loss of its `pretrain`; litgpt_compiled
    module         this package's network and objective in such a loop; module_compiled
    loop_masked    transformers' Llama seeing both ways: head and loss at every position, times the mask
    masked         this package's masked diffusion; masked_compiled; block: its block diffusion, in blocks of 16
    matmul         nothing but products of square matrices

With `_bf16` behind it a way's losses are computed under autocast to bfloat16 (`loop_bf16`, `module_bf16_compiled`).
`fit` is no peer of this file: it is the command line itself, see `clock`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.batch import Batch
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.plugin import Objective
from lit_small_lm.shapes import FixedShape
from lit_small_lm.training.compiled import compile_network
from lit_small_lm.training.optim import AdamW
from measuring.cases import BF16, CASES, Case, precision
from measuring.clock import stated
from measuring.turns import Turns

OBJECTIVES: dict[str, Objective] = {
    "module": NextToken(), "masked": MaskedDiffusion(), "block": BlockDiffusion(block_size=16),
}  # fmt: skip
RATE, CLIP = 1e-3, 1.0
SIZE = 1024
"""Of the matrices that are multiplied."""
PRODUCTS = 10
"""Of a step."""
Loss = Callable[[Batch, int], Tensor]
"""Of a batch at a step."""


def theirs(case: Case) -> nn.Module:
    """transformers' Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=case.vocab_size, hidden_size=case.dim, num_hidden_layers=case.n_layers,
            num_attention_heads=case.n_heads, num_key_value_heads=case.n_kv_heads, intermediate_size=case.hidden,
            tie_word_embeddings=True, attn_implementation="sdpa",
        )
    )  # fmt: skip


def litgpt(case: Case) -> nn.Module:
    """litgpt's Llama, with the embedding as the head."""
    from litgpt.config import Config
    from litgpt.model import GPT

    net = GPT(
        Config(
            block_size=case.length, n_layer=case.n_layers, n_embd=case.dim, n_head=case.n_heads,
            n_query_groups=case.n_kv_heads, intermediate_size=case.hidden, vocab_size=case.vocab_size,
            padded_vocab_size=case.vocab_size, rotary_percentage=1.0, parallel_residual=False, bias=False,
            norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
        )
    )  # fmt: skip
    net.lm_head.weight = net.transformer.wte.weight
    nn.init.normal_(net.lm_head.weight, std=0.02)
    return net


def pretrained(net: nn.Module) -> Loss:
    """The loss of litgpt's `pretrain`."""
    from litgpt.utils import chunked_cross_entropy

    def loss(batch: Batch, step: int) -> Tensor:
        return chunked_cross_entropy(net(batch.tokens[:, :-1]), batch.tokens[:, 1:].contiguous())

    return loss


def next_token(net: nn.Module) -> Loss:
    """The loss of transformers' own model."""

    def loss(batch: Batch, step: int) -> Tensor:
        row = batch.tokens[:, :-1]
        return net(input_ids=row, labels=row, shift_labels=batch.tokens[:, 1:].contiguous(), use_cache=False).loss

    return loss


def restored(net: nn.Module) -> Loss:
    """Masked diffusion as a plain loop writes it: logits and cross entropy at every position."""

    def loss(batch: Batch, step: int) -> Tensor:
        row = batch.tokens[:, 1:]
        chance = torch.rand(len(row), 1)  # (B, 1), uniform
        hidden = torch.rand(row.shape) < chance  # (B, T)
        every = torch.zeros(len(row), 1, row.shape[1], row.shape[1])  # (B, 1, T, T), added to scores: all are seen
        masked = row.masked_fill(hidden, batch.specials.mask)
        logits = net(input_ids=masked, attention_mask=every, use_cache=False).logits
        nll = F.cross_entropy(logits.flatten(0, 1), row.flatten(), reduction="none").view_as(row)  # (B * T,) -> (B, T)
        return (nll * hidden / chance).mean()

    return loss


def ours(case: Case) -> Backbone:
    """This package's Llama."""
    shape = FixedShape(
        dim=case.dim, n_layers=case.n_layers, n_heads=case.n_heads, n_kv_heads=case.n_kv_heads, hidden=case.hidden
    )
    return Backbone(BackboneSpec(), shape.resolve(), case.vocab_size)


def asked(net: Backbone, objective: Objective) -> Loss:
    """The loss that a training module takes."""

    def loss(batch: Batch, step: int) -> Tensor:
        query = objective.query(batch, (0, step))
        ctx = query.summed(torch.tensor(step))
        net(query.tokens, ctx, query.targets, query.scored)
        return ctx.trace.nats / batch.tokens[:, 1:].numel()

    return loss


PLAIN = {"loop": (theirs, next_token), "loop_masked": (theirs, restored), "litgpt": (litgpt, pretrained)}


def built(name: str, case: Case) -> tuple[nn.Module, Loss, torch.optim.Optimizer]:
    """The network, loss and optimizer of a peer that is a network in a loop."""
    way = name.removesuffix("_compiled").removesuffix(BF16)
    if way in OBJECTIVES:
        net = ours(case)
        loss, optimizer = asked(net, OBJECTIVES[way]), AdamW(lr=RATE).build(list(net.named_roles()), True)
    else:
        make, ask = PLAIN[way]
        net = make(case)
        loss = ask(net)
        optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    if name.endswith("_compiled") and way in OBJECTIVES:
        compile_network(net, "default")
    elif name.endswith("_compiled"):
        net.compile()
    return net, cast(loss) if precision(name) == "bf16-mixed" else loss, optimizer


def cast(loss: Loss) -> Loss:
    """The same under autocast to bfloat16."""

    def lower(batch: Batch, step: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(batch, step)

    return lower


def stepping(net: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer) -> Callable[[Batch, int], None]:
    """A step of a plain loop."""
    parameters = list(net.parameters())

    def step(batch: Batch, number: int) -> None:
        loss(batch, number).backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def steps_of(name: str, case: Case) -> Callable[[Batch, int], None]:
    """A step of a peer, of a batch and the number of the step."""
    return stepping(*built(name, case))


def trained(name: str, case: Case, batches: Sequence[Batch]) -> None:
    """Take the steps of a peer in turn with others."""
    net, loss, optimizer = built(name, case)
    step, turns = stepping(net, loss, optimizer), Turns()
    settings = stated(optimizer, precision(name), CLIP, batches[0].tokens.numpy().tobytes())
    turns.ready(parameters=sum(p.numel() for p in net.parameters()), **settings)
    for number, batch in enumerate(batches):
        step(batch, number)
        turns.step()


def multiplied(steps: int) -> None:
    """Take steps of some products of square matrices each: the first finds nothing in the processor's cache."""
    turns, factor, product = Turns(), torch.ones(SIZE, SIZE), torch.empty(SIZE, SIZE)
    turns.ready(gflop=PRODUCTS * 2 * SIZE**3 / 1e9)
    for _ in range(steps):
        for _ in range(PRODUCTS):
            torch.mm(factor, factor, out=product)
        turns.step()


def main() -> None:
    """Be a peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("case", choices=CASES)
    parser.add_argument("batches", help="a file of them")
    asked = parser.parse_args()
    batches = torch.load(asked.batches, weights_only=False)
    if asked.name == "matmul":
        multiplied(len(batches))
    else:
        trained(asked.name, CASES[asked.case], batches)


if __name__ == "__main__":
    sys.exit(main())
