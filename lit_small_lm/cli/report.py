"""What the command line prints: before a run what will happen, after it what came of it and what to type next."""

import dataclasses
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import yaml
from lightning.pytorch import Callback, Trainer

from lit_small_lm.checkpoint import LanguageModel, load
from lit_small_lm.cli.run_options import resume_command, script, with_plugins
from lit_small_lm.cli.stops import twice_as_long
from lit_small_lm.cli.watching import harmless
from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.planning.counts import size
from lit_small_lm.planning.outline import Outline
from lit_small_lm.plugin import Sampler
from lit_small_lm.ranks import process_number
from lit_small_lm.shapes import mismatch
from lit_small_lm.sharding import is_sharded
from lit_small_lm.training.callbacks.checkpoints import last_stable
from lit_small_lm.training.callbacks.progress import clock, short
from lit_small_lm.training.callbacks.wsd import WSDSchedule
from lit_small_lm.training.lit import LanguageModule
from lit_small_lm.training.run_dir import read_metrics
from lit_small_lm.training.score import named

SAMPLE_TOKENS = 80
BOUNDS = {"exact": "exact likelihood", "upper": "upper bound of the likelihood's bits"}


def say(text: str) -> None:
    """One line on standard error, where progress goes; of several processes only the first speaks."""
    if process_number() == 0:
        print(text, file=sys.stderr, flush=True)


def choose_precision(accelerator: str, precision: object) -> tuple[str, str]:
    """The precision to use where none is asked for, and why."""
    if precision is not None:
        return str(precision), "as asked"
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        capable = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16-mixed", "this GPU has bf16") if capable else ("16-mixed", "this GPU has no bf16")
    if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported():
        return "bf16-mixed", "this CPU has bf16 instructions"
    return "32-true", "this CPU has no bf16 instructions"


def device_line(trainer: Trainer, asked: str, why: str) -> str:
    """The device and precision in use, and why."""
    if trainer.precision != asked:
        why = f"{asked} {why}, which Lightning does not do on this device"
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    count = f" x {trainer.world_size} processes" if trainer.world_size > 1 else ""
    return f"device: {device.type} ({name}){count}; precision {trainer.precision}: {why}"


class Announcement(Callback):
    """Says on which device, with which precision, model and data a run starts."""

    def __init__(self, precision: str, why: str) -> None:
        self.precision, self.why = precision, why

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        if trainer.is_global_zero:
            for line in (
                device_line(trainer, self.precision, self.why),
                *shape_lines(pl_module),
                model_line(pl_module),
                *trainer.datamodule.notes(),
            ):
                say(line)


def model_line(module: LanguageModule) -> str:
    """Family, shape and parameter count."""
    count, dims = sum(p.numel() for p in module.net.parameters()), module.dims
    return (
        f"model: {short(count)} parameters; {dims.n_layers} layers x {dims.dim} dim, {dims.n_heads} heads, "
        f"{dims.hidden} hidden, {type(module.backbone.norm).__name__}, {module.encoder.specials.vocab_size} ids"
    )


def shape_lines(module: LanguageModule) -> list[str]:
    """How near the network comes to the parameters asked for, where the shape asks for any."""
    outline = Outline(module.backbone, module.dims, module.encoder.specials.vocab_size)
    found = mismatch(module.shape, module.dims, size(outline))
    return [] if found is None else [str(found)]


def curve(run_dir: Path, width: int = 70, height: int = 12) -> str:
    """The loss curves of a run, drawn in characters."""
    from uniplot import plot_to_string

    lines, curves = read_metrics(run_dir / "metrics.jsonl"), {}
    for key in ("train/loss", "val/loss", "val/loss_bound"):
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


def sample(module: LanguageModule, run_dir: Path, prompt: str = "def ", seed: int = 0) -> str:
    """Text of the network in training (its checkpoint, if it is sharded), continued as far as it has positions.

    What was compiled is run as it is written: for rows that grow it would be compiled anew.
    """
    if is_sharded(module.net.embed.weight):
        model = load(run_dir)
    else:
        model = LanguageModel(module.net.eval(), module.objective, module.encoder, {})
    limit = module.net.limit() or len(prompt) + SAMPLE_TOKENS + 1
    count = min(SAMPLE_TOKENS, limit - len(prompt) - 1)
    with torch.compiler.set_stance("force_eager"):
        return prompt + "".join(model.generate(prompt, max(1, count), cooled(module.objective.sampler()), seed))


def cooled(sampler: Sampler, temperature: float = 0.8) -> Sampler:
    """A sampler at another temperature, if it has one."""
    known = {field.name for field in dataclasses.fields(sampler)}
    return dataclasses.replace(sampler, temperature=temperature) if "temperature" in known else sampler


def summary(run_dir: Path, bound: str) -> str:
    """The last held-out score of a run and what it took."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    rate = f"val/{named('bits_per_byte', bound)}"
    scores = [line for line in lines if rate in line]
    last = lines[-1] if lines else {"step": 0, "tokens": 0, "seconds": 0.0}
    text = f"{last['step']} steps, {short(last['tokens'])} tokens, {clock(last['seconds'])} of training"
    if not scores:
        return text
    first, end = scores[0], scores[-1]
    before = f" (step {first['step']}: {float(first[rate]):.3f})" if len(scores) > 1 else ""  # "nan" is text in JSON
    return (
        f"{text}; validation {plus_minus(end[rate], end[f'{rate}_standard_error'])} bits per "
        f"byte ({provenance(bound, end['val/documents'])}){before}"
    )


def provenance(bound: str, documents: float, draws: str = "") -> str:
    """What a score is, with how many draws, and what its standard error was taken over."""
    error = (
        f"standard error over {documents:.0f} documents" if documents > 1 else "one document, standard error unknown"
    )
    return f"{BOUNDS[bound]}{draws}; {error}"


def plus_minus(value: float | str, error: float | str) -> str:
    """`1.234 +- 0.056`; without the error where fewer than two documents leave it unknown."""
    value, error = float(value), float(error)
    return f"{value:.4f} +- {error:.4f}" if math.isfinite(error) else f"{value:.4f}"


def next_commands(run_dir: Path, trainer: Trainer, plugins: Sequence[str]) -> str:
    """What to type next."""
    where, here, more = shlex.quote(str(run_dir)), script("lit-small-lm"), with_plugins(plugins)
    lines = [
        ("watch", f"{script('tensorboard')} --logdir {where}"),
        ("write", f"{here} generate {where} --prompt 'def ' --max_new_tokens 100{more}"),
        ("score", f"{here} test --run_dir {where}{more}"),
        ("resume", f"{resume_command(run_dir, plugins)}    (a run that was stopped)"),
        ("own text", f"{here} fit -c configs/demo.yaml --data.source.path my_folder/"),
    ]
    schedule = next((c for c in trainer.callbacks if isinstance(c, WSDSchedule)), None)
    stable = schedule and last_stable(run_dir, schedule.decay_start(trainer.max_steps))
    if stable:
        twice = twice_as_long(yaml.safe_load(trainer.lightning_module.config))
        longer = f"--branch_from {shlex.quote(str(stable))} {twice}{more}"
        lines.insert(4, ("train on", f"{here} fit {longer}    (from before the decay)"))
    return "\n".join(["next:", *(f"  {what:9} {command}" for what, command in lines)])


def score_lines(record: dict) -> Iterator[str]:
    """What `validate` and `test` measured; where there is an exact likelihood beside a bound, a line for each."""
    yield score_line(record, record["likelihood"])
    if record["likelihood"] == "upper" and "nats_per_token" in record:
        yield score_line(record, "exact")


def score_line(record: dict, bound: str) -> str:
    """One line of exact figures, or of those of a bound."""
    rate, loss = (named(figure, bound) for figure in ("bits_per_byte", "nats_per_token"))
    rate, loss = (plus_minus(record[name], record[f"{name}_standard_error"]) for name in (rate, loss))
    draws = "" if bound == "exact" else f", {record['draws']:.0f} draws"
    if draws and "block_size" in record:
        draws += f", blocks of {record['block_size']:.0f}"
    return (
        f"{record['split']}: {rate} bits per byte, {loss} nats per token "
        f"({provenance(bound, record['documents'], draws)}; "
        f"{record['tokens']:.0f} tokens, {record['bytes']:.0f} bytes; checkpoint of step {record['step']})"
    )


def finish(run_dir: Path, trainer: Trainer, module: LanguageModule, plugins: Sequence[str]) -> None:
    """After a run: its curve, a sample, its score and the next commands."""
    say(curve(run_dir))
    try:
        say(f"sample (temperature 0.8, seed 0):\n{harmless(sample(module, run_dir))}\n")
    except (RequestError, RunError) as error:
        say(f"no sample: {error}")
    say(summary(run_dir, module.objective.bound))
    say(f"run directory: {run_dir}")
    say(next_commands(run_dir, trainer, plugins))
