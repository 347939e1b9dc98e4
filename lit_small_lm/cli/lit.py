"""`lit-small-lm fit | validate | test`: LightningCLI with families, shapes and plug-ins by short name."""

import json
import logging
import os
import re
import signal
import warnings
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_small_lm import __version__
from lit_small_lm.cli import converting, lightning_parts, report, room, run_options, stops
from lit_small_lm.cli.preparation import Shown
from lit_small_lm.cli.request import check_request
from lit_small_lm.cli.run_options import Start
from lit_small_lm.cli.schema import Option, group, plain, slot
from lit_small_lm.data.datamodule import TokenData
from lit_small_lm.discovery import discover, trusted_packages
from lit_small_lm.errors import RequestError, shown
from lit_small_lm.plugin import Optim, Spec
from lit_small_lm.ranks import number_here
from lit_small_lm.training import diffusion  # noqa: F401  (options may name what it holds)
from lit_small_lm.training.callbacks import annealing, clipped_noise, conversion, mask_noise  # noqa: F401
from lit_small_lm.training.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints, Interrupted
from lit_small_lm.training.callbacks.depth import DepthMonitor
from lit_small_lm.training.callbacks.ema import EMA
from lit_small_lm.training.callbacks.progress import RunProgress
from lit_small_lm.training.callbacks.run_files import RunFiles
from lit_small_lm.training.callbacks.step_metrics import StepMetrics
from lit_small_lm.training.callbacks.wsd import WSDSchedule
from lit_small_lm.training.lit import LanguageModule
from lit_small_lm.training.logger import RunLogger
from lit_small_lm.training.optim import AdamW
from lit_small_lm.training.parallel import FSDP2
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
PRECISIONS = ("32-true", "32", 32, "bf16-mixed", "bf16", "16-mixed", "16", 16)
"""The numbers mean what they mean to Lightning: 16 and bf16 are mixed."""
COMPILE_MODES = ("off", "default", "reduce-overhead", "max-autotune")
ACTIVATION_CHECKPOINTING = ("off", "layers")


def roots() -> dict[str, Option]:
    """The top-level options, as the request checker wants them; our own classes check their ranges themselves."""
    trainer = {
        **lightning_parts.OPTIONS,
        "max_steps": {"low": -1, "high": 2**53},
        "precision": {"choices": PRECISIONS},
        "accelerator": {"choices": ("auto", "cpu", "gpu", "cuda")},
    }
    return {
        "model": slot(LanguageModule),
        "data": group(TokenData, {"num_workers": {"low": 0, "high": 256}}),
        "optim": slot(Optim, AdamW()),
        "schedule": group(WSDSchedule),
        "checkpoints": group(Checkpoints),
        "depth": group(DepthMonitor),
        "trainer": group(Trainer, trainer),
        "compile": plain(str, "off", {"choices": COMPILE_MODES}),
        "activation_checkpointing": plain(str, "off", {"choices": ACTIVATION_CHECKPOINTING}),
        "max_tokens": plain(int | None, None, {"low": 1, "high": 2**53}),
        "draws": plain(int, 4, {"low": 1, "high": 2**20}),
        "ema_decay": plain(float | None, None, {"above": 0, "below": 1}),
        "seed_everything": plain(int, 0, {"low": 0, "high": 2**32 - 1}),
    }


parser = run_options.parser


def run(command: str, argv: list[str]) -> int:
    """Run one of the three commands; returns the exit status."""
    quiet()
    os.environ.pop("JSONARGPARSE_DEFAULT_ENV", None)  # options come from the command line and from files
    options, rest = run_options.take(command, run_options.with_packaged_files(argv))
    discover(options.plugins)
    restrict_parsing()
    asks_help = bool({"-h", "--help"} & set(rest))
    start = Start() if asks_help else run_options.start_of(command, options)
    if start.notice:
        report.say(start.notice)
    request = check_request(rest, roots(), base=start.base, beside=list(vars(options)))
    if command == "fit" and options.init_from and start.record is not None:
        request = request.with_tokenizer(start.record["tokenizer"]["spec"])
    for notice in request.notices:
        report.say(notice)
    try:
        LitCLI(options, start, [command, *request.argv])
    except Interrupted as stop:
        command = run_options.resume_command(stop.run_dir, options.plugins)
        report.say(f"{stop}; checkpoint saved; go on with: {command}")
        return 128 + stop.number
    return 0


def restrict_parsing() -> None:
    """Let a configuration name Specs and the classes of trusted packages, and import nothing."""
    set_parsing_settings(
        subclasses_enabled=[Spec],
        docstring_parse_attribute_docstrings=True,
        import_path_denylist=["*"],
        import_path_allowlist=["lightning", *trusted_packages()],
    )


def quiet() -> None:
    """Silence what Lightning says about itself; warnings that concern the user stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # no loss is changed in place
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)  # a norm, a checkpoint


class ShortErrors(LightningArgumentParser):
    """A parser whose errors are one line, without the usage.

    The request has been checked before; what is left are values of Lightning's own types, such as plugins.
    """

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
        key, value = re.search(r'Parser key "([^"]+)"', message), re.search(r"Given value: (.*)", message)
        if not key or not value:
            raise RequestError(lines[0] if lines else "the options could not be parsed")
        option = next((line for line in lines if line.startswith("Option")), None)
        if option is not None:
            raise RequestError(f"{key[1]}: {option}")
        raise RequestError(f"{key[1]}: {shown(value[1])} is not accepted")


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
            parser_kwargs={
                "prog": "lit-small-lm",
                **{name: {"description": run_options.TEXT} for name in self.subcommands()},
            },
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
        parser.add_argument(
            "--compile", type=str, default="off", help="off, or a mode of torch.compile, such as default"
        )
        parser.add_argument(
            "--activation_checkpointing",
            type=str,
            default="off",
            help="layers: keep only the input of every layer for the backward pass and run the layer again there, "
            "which saves memory and costs about a third of the time; off: keep everything",
        )
        parser.add_argument(
            "--max_tokens",
            type=int | None,
            default=None,
            help="training tokens after which the run ends; instead of trainer.max_steps and trainer.max_epochs",
        )
        parser.add_argument("--draws", type=int, default=4, help="draws of noise that a held-out bound is the mean of")
        parser.add_argument(
            "--ema_decay",
            type=float | None,
            default=None,
            help="share of the weights' moving average that stays at each step, such as 0.999 (above 0, below 1); "
            "the averaged weights are evaluated, saved and loaded; null: no average",
        )
        parser.add_lightning_class_args(WSDSchedule, "schedule")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_lightning_class_args(DepthMonitor, "depth")

    # ------------------------------------------------------------------------------------------------ building
    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        trainer = config.trainer
        if trainer.accelerator == "auto":
            trainer.accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        trainer.precision, self.why = report.choose_precision(trainer.accelerator, trainer.precision)
        if self.subcommand == "fit":
            if trainer.max_steps == 0 or trainer.limit_train_batches == 0:
                raise RequestError("trainer.max_steps, trainer.limit_train_batches: 0; allowed: at least 1")
            stops.check(config)
            lightning_parts.refuse_contradiction(trainer)
        self.config_text = self.dumped()
        self._report_changes()

    def dumped(self) -> str:
        """The whole configuration as YAML, the version first."""
        version = f"lit_small_lm: {json.dumps(__version__)}\n"
        return version + self._parser(self.subcommand).dump(self.config[self.subcommand], skip_unset=False)

    def _report_changes(self) -> None:
        """Say what a resume or branch changes; what defines the model cannot change."""
        if self.start.config is None:
            return
        for key, (before, after) in run_options.changes(self.start.config, self.config_text).items():
            if key.startswith(("model.", "data.tokenizer")):
                raise RequestError(
                    f"{key}: {after!r}, but the checkpoint has {before!r}; use --init_from to take its weights only"
                )
            if key == "optim.class_path":
                now, then = (str(path).rpartition(".")[2] for path in (after, before))
                raise RequestError(
                    f"optim: {now}, but the checkpoint has the state of {then}; --init_from takes its weights only"
                )
            report.say(f"changed: {key}: {before!r} -> {after!r}")
        if self.subcommand == "fit":
            self._refuse_finished(yaml.safe_load(self.start.config), yaml.safe_load(self.config_text))

    def _refuse_finished(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        step, old, new, key = self.start.step, stops.steps_of(before), stops.steps_of(after), stops.given(after)[0]
        if step >= new > 0:
            raise RequestError(
                f"{key}: {new} steps; the run is finished, at step {step}; for more steps branch from a "
                "checkpoint before its decay with --branch_from"
            )
        decayed = WSDSchedule(**before["schedule"]).decay_start(old) if old > 0 else step
        if new > old and step > decayed:
            raise RequestError(
                f"{key}: {new} steps; the learning rate of this run decays from step {decayed} on, the "
                f"checkpoint is at step {step}; extend with --branch_from a checkpoint of step {decayed} or before"
            )

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except Exception as error:  # jsonargparse wraps what a constructor raises, more than once
            raise lightning_parts.refusal(error) from None
        config = self.config_init[self.subcommand]
        asked = self.config[self.subcommand].data.cache_dir
        given = "data.cache_dir" if asked else "LIT_SMALL_LM_CACHE, the data cache"
        run_options.refuse_file(given, self.datamodule.cache)
        self.model.refuse_length(self.datamodule.seq_len)
        self.model.optim, self.model.compile_mode = config.optim, config.compile
        self.model.activation_checkpointing, self.model.draws = config.activation_checkpointing, config.draws
        self.model.seed = self.datamodule.seed = config.seed_everything
        self.model.origin = self.start.record
        self.datamodule.encoder_record, self.datamodule.max_tokens = self.start.encoder(self.model), config.max_tokens
        if self.subcommand == "fit":
            self.model.config, self.model.init_from = self.config_text, self.options.init_from

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self.config_init[self.subcommand]
        config = {**settings.trainer, **kwargs}
        config["plugins"] = [*listed(config["plugins"]), AtomicCheckpointIO()]
        if self.subcommand != "fit":
            return make_trainer({**config, "logger": False, "enable_progress_bar": False})
        config["logger"] = [
            RunLogger(),
            *(logger for logger in listed(config["logger"]) if not isinstance(logger, bool)),
        ]
        lightning_parts.refuse_twice(listed(config["callbacks"]))
        average = [] if settings.ema_decay is None else [EMA(settings.ema_decay)]
        if self.datamodule.store is None:
            lightning_parts.refuse_unlogged(listed(config["callbacks"]), self.model.monitored(self.datamodule.source))
        config["callbacks"] = [*listed(config["callbacks"]), *average, *self._callbacks(settings)]
        trainer = make_trainer(config)
        for callback in average:
            callback.refuse_sharded(trainer.strategy)
        return trainer

    def _callbacks(self, settings: Any) -> list[Callback]:
        """Step metrics first, depth after them, and checkpoints last, so that a checkpoint holds the counters of its
        step and comes after every line of it."""
        step = self.start.step if self.options.resume else 0
        self.files = RunFiles(self.config_text, self.options.run_dir, step)
        begun = converting.begun(self.model, self.options.init_from, self.start.record)
        shown = [report.Announcement(settings.trainer.precision, self.why), *begun, RunProgress()]
        quiet = settings.trainer.enable_progress_bar is False
        metrics = [StepMetrics(), settings.depth]
        return [*metrics, settings.schedule, self.files, *([] if quiet else shown), settings.checkpoints]

    # ------------------------------------------------------------------------------------------------- running
    def fit(self, model: LanguageModule, **kwargs: Any) -> None:
        """Train, then show what came of it."""
        checkpoint = str(self.start.checkpoint) if self.start.checkpoint else None
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDP2):
            strategy.refuse_early(model)
        if number_here() == 0:
            self.datamodule.pace.check_shares(1, self.trainer.accumulate_grad_batches)
            room.warn(model, self.datamodule, self.config_text, self.options.run_dir)
            self.datamodule.tell = progress = Shown("data")
            self.datamodule.prepare_data()  # text that cannot be read is found before other processes start
            progress.done()
        try:
            self.trainer.fit(model, datamodule=self.datamodule, ckpt_path=checkpoint, weights_only=True)
        except MisconfigurationException as error:
            raise RequestError(f"trainer: {' '.join(str(error).split())}") from error
        except Exception:
            if isinstance(strategy.launcher, _SubprocessScriptLauncher):
                strategy.launcher.kill(signal.SIGTERM)  # the processes it started would wait for this one
            raise
        if self.trainer.is_global_zero:
            report.finish(self.files.folder, self.trainer, model, self.options.plugins)

    def validate(self, model: LanguageModule, **kwargs: Any) -> None:
        """Score the validation split with the checkpoint."""
        self._evaluate(self.trainer.validate, "validation")

    def test(self, model: LanguageModule, **kwargs: Any) -> None:
        """Score the test split once, and write test.json into the run directory."""
        result = self._evaluate(self.trainer.test, "test")
        folder = self.options.run_dir or self.start.checkpoint.absolute().parent.parent
        folder.mkdir(parents=True, exist_ok=True)
        if self.trainer.is_global_zero:
            write_json(folder / "test.json", result)
            report.say(f"written: {folder / 'test.json'}")

    def _evaluate(self, score: Any, split: str) -> dict[str, Any]:
        checkpoint = str(self.start.checkpoint)
        score(self.model, datamodule=self.datamodule, ckpt_path=checkpoint, weights_only=True, verbose=False)
        results = self.model.results
        record = {
            "split": split,
            "likelihood": self.model.objective.bound,
            "precision": self.trainer.precision,
            "checkpoint": checkpoint,
            "step": self.start.step,
            **{re.sub("^loss", "nats_per_token", name): value for name, value in results.items()},
        }
        if self.trainer.is_global_zero:
            for line in report.score_lines(record):
                report.say(line)
        return {key: None if value != value else value for key, value in record.items()}  # NaN is no JSON


def make_trainer(config: dict[str, Any]) -> Trainer:
    """Lightning's Trainer; what it refuses (a device that is not there, a strategy it does not know) in one line."""
    try:
        return Trainer(**config)
    except RequestError:
        raise
    except (MisconfigurationException, ValueError, TypeError) as error:
        asked = {key: config[key] for key in ("accelerator", "devices", "strategy", "precision")}
        if isinstance(asked["strategy"], Strategy):
            asked["strategy"] = type(asked["strategy"]).__name__
        asked = ", ".join(f"{key}={value!r}" for key, value in asked.items())
        raise RequestError(f"trainer: {' '.join(str(error).split())[:150]} (asked for: {asked})") from error


def listed(value: Any) -> list[Any]:
    """A Trainer argument that may be none, one or many, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
