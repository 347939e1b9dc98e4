"""What a checked request says of the cost of a run: rows, precision, devices, length, and the vocabulary."""

from collections.abc import Mapping
from typing import Any, Literal

import torch

from lit_small_lm.cli import report
from lit_small_lm.cli.schema import options_of
from lit_small_lm.data.datamodule import TokenData, rows_of_a_step
from lit_small_lm.data.plan import Pace, Warmup
from lit_small_lm.data.store import TokenStore
from lit_small_lm.data.tokenizer import BPE
from lit_small_lm.errors import RequestError, RunError, path_of, shown
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.planning.devices import Device
from lit_small_lm.planning.workload import Workload
from lit_small_lm.plugin import Objective, Optim, Spec
from lit_small_lm.spec import class_path
from lit_small_lm.training.callbacks.checkpoints import Checkpoints
from lit_small_lm.training.optim import AdamW
from lit_small_lm.training.parallel import FSDP2

LONG_NAMES = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def workload_of(tree: Mapping[str, Any], device: Device | None, objective: Objective | None) -> Workload:
    """The workload of a request as plain data.

    Args:
        tree: the request; what it leaves open has the defaults of `fit`.
        device: what it is planned for; None: this machine.
        objective: what the network is asked; None: the next token.

    Raises:
        RequestError: rows that cannot be shared out, or a size given twice.
    """
    data, trainer = tree.get("data", {}), tree.get("trainer", {})
    pace = _pace(data)
    accelerator = _accelerator(trainer, device)
    processes = _processes(trainer, accelerator)
    sharding = _sharding(trainer, processes)
    steps = _steps(tree, trainer, pace)
    saved = {name: tree.get("checkpoints", {}).get(name, options_of(Checkpoints)[name].default) for name in SAVED}
    optim = Optim.from_dict(tree["optim"]) if "optim" in tree else AdamW()
    return Workload(
        optim=optim,
        objective=objective or NextToken(),
        seq_len=pace.seq_len,
        batch_size=pace.batch_size,
        rows=_rows(data, trainer, pace, processes // sharding["tensor_parallel"]),
        processes=processes,
        **sharding,
        precision=_precision(trainer, accelerator, device),
        accelerator=accelerator,
        activation_checkpointing=tree.get("activation_checkpointing", "off"),
        average="none" if tree.get("ema_decay") is None else "ema",
        steps=steps,
        tokens=None if steps is None else pace.rows_before(steps) * pace.seq_len,
        **saved,
    )


SAVED = ("every_n_steps", "keep", "saving")


def _pace(data: Mapping[str, Any]) -> Pace:
    seq_len = data.get("seq_len", options_of(TokenData)["seq_len"].default)
    warmup = Warmup.from_dict(data["warmup"]) if "warmup" in data else Warmup()
    for name in ("seq_len", "batch_size", "batch_tokens", "micro_batch_size"):
        if data.get(name) is not None and data[name] < 1:
            raise RequestError(f"data.{name}: {data[name]}; allowed: at least 1")
    return Pace(rows_of_a_step(seq_len, data.get("batch_size"), data.get("batch_tokens")), seq_len, warmup)


def _steps(tree: Mapping[str, Any], trainer: Mapping[str, Any], pace: Pace) -> int | None:
    if tree.get("max_tokens") is not None:
        return pace.steps_of_tokens(tree["max_tokens"])
    steps = trainer.get("max_steps", -1)
    return steps if steps is not None and steps > 0 else None


def _accelerator(trainer: Mapping[str, Any], device: Device | None) -> Literal["cpu", "cuda"]:
    if device is not None:
        return "cpu" if device.name == "cpu" else "cuda"
    asked = trainer.get("accelerator", "auto")
    return "cuda" if asked in ("gpu", "cuda") or (asked == "auto" and torch.cuda.is_available()) else "cpu"


def _precision(trainer: Mapping[str, Any], accelerator: str, device: Device | None) -> str:
    asked = trainer.get("precision")
    if asked is None and device is not None and accelerator == "cuda":
        return "bf16-mixed" if "bf16" in device.peaks else "16-mixed"
    chosen, _ = report.choose_precision(accelerator, asked)
    return LONG_NAMES.get(chosen, chosen)


def _processes(trainer: Mapping[str, Any], accelerator: str) -> int:
    """How many processes train; "auto" and -1 are all GPUs of this machine, or one process on its CPU."""
    asked, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes", 1)
    if isinstance(asked, str) and asked.lstrip("-").isdigit():
        asked = int(asked)
    if asked in ("auto", -1):
        return nodes * (max(1, torch.cuda.device_count()) if accelerator == "cuda" else 1)
    if isinstance(asked, (list, tuple)):
        return nodes * max(1, len(asked))
    if isinstance(asked, str):
        parts = [part for part in asked.split(",") if part.strip()]
        if not parts or not all(part.strip().isdecimal() for part in parts):
            raise RequestError(f"trainer.devices: {shown(asked)!r}; allowed: a number, numbers with commas, or auto")
        return nodes * len(parts)
    if asked < 1:
        raise RequestError(f"trainer.devices: {shown(asked)}; allowed: at least 1, or auto")
    return nodes * asked


def _sharding(trainer: Mapping[str, Any], processes: int) -> dict[str, int]:
    """Over how many processes FSDP2 divides what it divides; others leave everything to each process."""
    strategy = trainer.get("strategy")
    if not isinstance(strategy, Mapping) or strategy["class_path"] != class_path(FSDP2):
        return {"tensor_parallel": 1, "shards": 1}
    sizes = strategy.get("init_args", {})
    parallel, replicas = sizes.get("tensor_parallel_size", 1), sizes.get("replicas", 1)
    if parallel < 1 or replicas < 1 or processes % (parallel * replicas):
        raise RequestError(
            f"trainer.strategy: tensor_parallel_size {parallel} x replicas {replicas} does not divide the {processes} "
            "processes (trainer.devices x trainer.num_nodes)"
        )
    return {"tensor_parallel": parallel, "shards": processes // replicas}


def _rows(data: Mapping[str, Any], trainer: Mapping[str, Any], pace: Pace, shares: int) -> int:
    """Rows that one process handles at once."""
    rows, accumulate = data.get("micro_batch_size"), trainer.get("accumulate_grad_batches", 1)
    parts = shares * (accumulate if rows is None else rows)
    if pace.batch_size % parts:
        raise RequestError(
            f"data.batch_size: {pace.batch_size} is not divisible by {shares} shares of the data x "
            f"{accumulate if rows is None else rows} {'accumulated batches' if rows is None else 'micro_batch_size'}"
        )
    return pace.batch_size // parts if rows is None else rows


def vocabulary(data: Mapping[str, Any]) -> tuple[int, str]:
    """The vocabulary that a configuration will train with, and where it comes from."""
    if data.get("store"):
        found = TokenStore.open(path_of(data["store"])).encoder
        return found.specials.vocab_size, "the token store's"
    option = options_of(TokenData)["tokenizer"]
    tokenizer: Spec = option.kind.from_dict(data["tokenizer"]) if "tokenizer" in data else option.default
    name = type(tokenizer).__name__
    if isinstance(tokenizer, BPE):
        return tokenizer.vocab_size, f"what data.tokenizer {name} asks for; a small corpus may not fill it"
    try:
        return tokenizer.learn(iter(())).specials.vocab_size, f"data.tokenizer {name}"
    except (RequestError, RunError):
        raise
    except Exception as error:  # a plug-in that has to see texts
        raise RequestError(
            f"data.tokenizer: {name} does not know its size without texts ({type(error).__name__}); give --vocab_size"
        ) from None
