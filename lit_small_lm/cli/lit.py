"""`lit-small-lm fit | validate | test`: LightningCLI with families, shapes and plug-ins by short name."""

import dataclasses
import logging
import shlex
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lit_small_lm.cli import report, run_options
from lit_small_lm.cli.run_options import Start
from lit_small_lm.data.datamodule import TokenData
from lit_small_lm.discovery import discover
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Optim, Spec
from lit_small_lm.training.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints, Interrupted
from lit_small_lm.training.callbacks.progress import RunProgress
from lit_small_lm.training.callbacks.run_files import RunFiles
from lit_small_lm.training.callbacks.step_metrics import StepMetrics
from lit_small_lm.training.callbacks.wsd import WSDSchedule
from lit_small_lm.training.lit import LanguageModule
from lit_small_lm.training.logger import RunLogger
from lit_small_lm.training.optim import AdamW
from lit_small_lm.training.run_dir import write_json

TRAINER_DEFAULTS = {
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "val_check_interval": 200,
    "check_val_every_n_epoch": None,
    "log_every_n_steps": 10,
    "gradient_clip_val": 1.0,
    "enable_checkpointing": False,
    "use_distributed_sampler": False,
}
"""Lightning's own checkpoints, summary and sampler are replaced by this package's."""


def run(command: str, argv: list[str]) -> int:
    """Run one of the three commands; returns the exit status."""
    quiet()
    set_parsing_settings(subclasses_enabled=[Spec], docstring_parse_attribute_docstrings=True)
    options, rest = run_options.take(command, argv)
    discover(options.plugins)
    if not {"-h", "--help"} & set(rest):
        start = run_options.fit_start(options) if command == "fit" else run_options.evaluation_start(options)
    else:
        start = Start()
    with tempfile.TemporaryDirectory() as folder:
        base = []
        if start.config is not None:
            base = ["-c", str(Path(folder) / "config.yaml")]
            Path(base[1]).write_text(start.config)
        try:
            LitCLI(options, start, [command, *base, *rest])
        except Interrupted as stop:
            report.say(f"{stop}; checkpoint saved; go on with: {resume_command(stop.run_dir)}")
            return 128 + stop.number
    return 0


def quiet() -> None:
    """Silence what Lightning says about itself; warnings that concern the user stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")


def resume_command(run_dir: Path) -> str:
    """What to type to go on with a run."""
    return f"lit-small-lm fit --run_dir {shlex.quote(str(run_dir))} --resume"


class ShortErrors(LightningArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
        raise RequestError(lines[0] if lines else "the options could not be parsed")


class LitCLI(LightningCLI):
    """LightningCLI around LanguageModule and TokenData.

    Args:
        options: the run's options (run directory, resume and so on).
        start: where the command starts from.
        args: the command and the configuration's options.
    """

    def __init__(self, options: Any, start: Start, args: list[str]) -> None:
        self.options, self.start = options, start
        super().__init__(
            LanguageModule,
            TokenData,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=ShortErrors,
            parser_kwargs={"description": run_options.TEXT},
            subclass_mode_model=True,
            args=args,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        taken = {"model", "dataloaders", "datamodule", "ckpt_path", "weights_only"}
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "ckpt_path", "weights_only"},
            "validate": taken | {"verbose"},
            "test": taken | {"verbose"},
        }

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=int, default=0, help="seed of init, data order and dropout")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--optim", type=Optim, default=AdamW(), help="the optimizer")
        parser.add_argument("--compile", type=str, default="off", help="off, or a mode of torch.compile, such as default")
        parser.add_lightning_class_args(WSDSchedule, "schedule")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")

    # ------------------------------------------------------------------------------------------------ building
    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        trainer = config.trainer
        trainer.precision, self.why = report.choose_precision(trainer.accelerator, trainer.precision)
        if self.subcommand == "fit":
            if trainer.max_steps == -1 and trainer.max_epochs is None:
                raise RequestError("trainer.max_steps: not given; a run needs trainer.max_steps or trainer.max_epochs")
            self.config_text = self._parser("fit").dump(config, skip_none=False)
            self._report_changes()

    def _report_changes(self) -> None:
        """Say what a resume or branch changes; what defines the model cannot change."""
        if self.start.config is None:
            return
        changed = run_options.changes(self.start.config, self.config_text)
        for key, (before, after) in changed.items():
            if key.startswith("model."):
                raise RequestError(f"{key}: {after!r}, but the checkpoint has {before!r}; use --init_from to take weights only")
            report.say(f"changed: {key}: {before!r} -> {after!r}")
        self._refuse_finished(yaml.safe_load(self.start.config), yaml.safe_load(self.config_text))

    def _refuse_finished(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        step, old, new = self.start.step, before["trainer"]["max_steps"], after["trainer"]["max_steps"]
        if step >= new > 0:
            raise RequestError(
                f"trainer.max_steps: {new}; the checkpoint is at step {step}, finished; give more steps, and to keep the "
                f"learning rate stable branch from a checkpoint before its decay with --branch_from"
            )
        decayed = WSDSchedule(**before["schedule"]).decay_start(old) if old > 0 else step
        if new > old and step > decayed:
            raise RequestError(
                f"trainer.max_steps: {new}; the learning rate of this run decays from step {decayed} on and the checkpoint "
                f"is at step {step}; extend with --branch_from a checkpoint of step {decayed} or before"
            )

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        config = self.config_init[self.subcommand]
        self.model.optim, self.model.compile_mode = config.optim, config.compile
        self.model.seed = self.datamodule.seed = config.seed_everything
        if self.subcommand == "fit":
            self.model.config, self.model.init_from = self.config_text, self.options.init_from

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = {**self.config_init[self.subcommand].trainer, **kwargs}
        config["plugins"] = [*listed(config["plugins"]), AtomicCheckpointIO()]
        if self.subcommand != "fit":
            return Trainer(**{**config, "logger": False, "enable_progress_bar": False})
        config["logger"] = [RunLogger(), *(x for x in listed(config["logger"]) if not isinstance(x, bool))]
        self.files = RunFiles(self.config_text, self._folder(), self.start.step if self.options.resume else 0)
        shown = [report.Announcement(self.why), RunProgress()] if config["enable_progress_bar"] is not False else []
        settings = self.config_init["fit"]
        config["callbacks"] = [
            *listed(config["callbacks"]), StepMetrics(), settings.schedule, self.files, *shown, settings.checkpoints,
        ]  # fmt: skip
        return Trainer(**config)

    def _folder(self) -> Path | None:
        return self.options.run_dir

    # ------------------------------------------------------------------------------------------------- running
    def fit(self, model: LanguageModule, **kwargs: Any) -> None:
        """Train, then show what came of it."""
        checkpoint = str(self.start.checkpoint) if self.start.checkpoint else None
        self.trainer.fit(model, datamodule=self.datamodule, ckpt_path=checkpoint, weights_only=True)
        if self.trainer.is_global_zero:
            report.finish(self.files.folder, model)

    def validate(self, model: LanguageModule, **kwargs: Any) -> None:
        """Score the validation split with the checkpoint."""
        self._evaluate(self.trainer.validate, "validation")

    def test(self, model: LanguageModule, **kwargs: Any) -> None:
        """Score the test split once, and write test.json into the run directory."""
        result = self._evaluate(self.trainer.test, "test")
        folder = self.options.run_dir or self.start.checkpoint.absolute().parent.parent
        if self.trainer.is_global_zero:
            write_json(folder / "test.json", result)
            report.say(f"written: {folder / 'test.json'}")

    def _evaluate(self, score: Any, split: str) -> dict[str, Any]:
        score(self.model, datamodule=self.datamodule, ckpt_path=str(self.start.checkpoint), weights_only=True, verbose=False)
        results = dict(self.model.results)
        record = {
            "split": split,
            "likelihood": self.model.objective.bound,
            "checkpoint": str(self.start.checkpoint),
            "step": self.start.step,
            "nats_per_token": results.pop("loss"),
            "nats_per_token_standard_error": results.pop("loss_standard_error"),
            **results,
        }
        if self.trainer.is_global_zero:
            report.say(report.score_line(record))
        return record


def listed(value: Any) -> list[Any]:
    """A Trainer argument that may be none, one or many, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
