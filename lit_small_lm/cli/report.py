"""What the command line prints: before a run what will happen, after it what came of it and what to type next."""

import shlex
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer

from lit_small_lm.checkpoint import LanguageModel
from lit_small_lm.samplers.autoregressive import Autoregressive
from lit_small_lm.training.callbacks.progress import clock, short
from lit_small_lm.training.lit import LanguageModule
from lit_small_lm.training.run_dir import read_metrics

SAMPLE_TOKENS = 80


def say(text: str) -> None:
    """One line on standard error, where progress goes."""
    print(text, file=sys.stderr, flush=True)


def choose_precision(accelerator: str, precision: object) -> tuple[str, str]:
    """The precision to use where none is asked for, and why."""
    if precision is not None:
        return str(precision), "as asked"
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        capable = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16-mixed", "this GPU has bf16") if capable else ("16-mixed", "this GPU has no bf16")
    if torch.cpu._is_amx_tile_supported():
        return "bf16-mixed", "this CPU has bf16 matrix instructions (AMX)"
    return "32-true", "this CPU has no bf16 matrix instructions (AMX)"


def device_line(trainer: Trainer, why: str) -> str:
    """The device and precision in use, and why."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    count = f" x {trainer.world_size} processes" if trainer.world_size > 1 else ""
    return f"device: {device.type} ({name}){count}; precision {trainer.precision}: {why}"


class Announcement(Callback):
    """Says on which device, with which precision, model and data a run starts."""

    def __init__(self, why: str) -> None:
        self.why = why

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        if trainer.is_global_zero:
            for line in (device_line(trainer, self.why), model_line(pl_module), *trainer.datamodule.notes()):
                say(line)


def model_line(module: LanguageModule) -> str:
    """Family, shape and parameter count."""
    count, dims = sum(p.numel() for p in module.net.parameters()), module.dims
    return (
        f"model: {short(count)} parameters; {dims.n_layers} layers x {dims.dim} dim, {dims.n_heads} heads, "
        f"{dims.hidden} hidden, {type(module.backbone.norm).__name__}, {module.encoder.vocab_size} ids"
    )


def curve(run_dir: Path, width: int = 70, height: int = 12) -> str:
    """The loss curves of a run, drawn in characters."""
    from uniplot import plot_to_string

    lines, curves = read_metrics(run_dir / "metrics.jsonl"), {}
    for key in ("train/loss", "val/loss"):
        points = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), float)]
        if points:
            curves[key] = tuple(zip(*points, strict=True))
    if not curves:
        return ""
    drawn = plot_to_string(
        xs=[steps for steps, _ in curves.values()],
        ys=[losses for _, losses in curves.values()],
        lines=[key == "train/loss" for key in curves],
        title=" and ".join(curves) + " in nats per token, over optimizer steps",
        color=sys.stderr.isatty(),
        width=width,
        height=height,
    )
    return drawn if isinstance(drawn, str) else "\n".join(drawn)


def sample(module: LanguageModule, prompt: str = "def ", seed: int = 0) -> str:
    """Text of the network in training, continued from `prompt`."""
    model = LanguageModel(module.net.eval(), module.objective, module.encoder, {})
    return prompt + "".join(model.generate(prompt, SAMPLE_TOKENS, Autoregressive(temperature=0.8), seed))


def summary(run_dir: Path) -> str:
    """The last held-out score of a run and what it took."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    scores = [line for line in lines if "val/bits_per_byte" in line]
    last = lines[-1] if lines else {"step": 0, "tokens": 0, "seconds": 0.0}
    text = f"{last['step']} steps, {short(last['tokens'])} tokens, {clock(last['seconds'])} of training"
    if not scores:
        return text
    first, end = scores[0], scores[-1]
    before = f" (step {first['step']}: {first['val/bits_per_byte']:.3f})" if len(scores) > 1 else ""
    return (
        f"{text}; validation {end['val/bits_per_byte']:.3f} +- {end['val/bits_per_byte_standard_error']:.3f} bits per "
        f"byte (exact likelihood, standard error over {end['val/documents']:.0f} documents){before}"
    )


def next_commands(run_dir: Path) -> str:
    """What to type next."""
    where = shlex.quote(str(run_dir))
    return "\n".join(
        [
            "next:",
            f"  tensorboard --logdir {where}",
            f"  lit-small-lm generate {where} --prompt 'def ' --max_new_tokens 100",
            f"  lit-small-lm test --run_dir {where}",
            f"  lit-small-lm fit --run_dir {where} --resume --trainer.max_steps 640 --schedule.decay 0.1",
            "  lit-small-lm fit -c configs/demo.yaml --data.source.path my_folder/",
        ]
    )


def score_line(record: dict) -> str:
    """One line of what `validate` and `test` measured."""
    return (
        f"{record['split']}: {record['bits_per_byte']:.4f} +- {record['bits_per_byte_standard_error']:.4f} bits per byte, "
        f"{record['nats_per_token']:.4f} +- {record['nats_per_token_standard_error']:.4f} nats per token "
        f"({record['likelihood']} likelihood; standard error over {record['documents']:.0f} documents; "
        f"{record['tokens']:.0f} tokens, {record['bytes']:.0f} bytes; checkpoint of step {record['step']})"
    )


def finish(run_dir: Path, module: LanguageModule) -> None:
    """After a run: its curve, a sample, its score and the next commands."""
    say(curve(run_dir))
    say(f"sample (temperature 0.8, seed 0):\n{sample(module)}\n")
    say(summary(run_dir))
    say(f"run directory: {run_dir}")
    say(next_commands(run_dir))
