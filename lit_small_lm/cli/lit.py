"""`lit-small-lm fit | validate | test`: LightningCLI with families, shapes and plug-ins by short name."""

import json
import os
import re
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_small_lm import __version__
from lit_small_lm.cli import (
    converting,
    lightning_parts,
    ranges,  # noqa: F401  (what it declares)
    report,
    rewinding,
    room,
    run_options,
    stops,
)
from lit_small_lm.cli.allocator import freed_memory
from lit_small_lm.cli.failing import explained
from lit_small_lm.cli.lightning_parts import listed
from lit_small_lm.cli.parsing import ShortErrors, begin, quiet, restrict_parsing
from lit_small_lm.cli.preparation import Shown
from lit_small_lm.cli.processes import Launcher, Processes, own_launcher
from lit_small_lm.cli.request import Request, check_request
from lit_small_lm.cli.run_options import Start
from lit_small_lm.cli.schema import Option, group, plain, slot
from lit_small_lm.data.datamodule import TokenData
from lit_small_lm.discovery import discover
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Optim
from lit_small_lm.ranks import number_here
from lit_small_lm.training import (
    diffusion,  # noqa: F401  (options may name what it holds)
    run_lock,
)
from lit_small_lm.training.callbacks import annealing, clipped_noise, conversion, mask_noise  # noqa: F401
from lit_small_lm.training.callbacks.checkpoints import Checkpoints
from lit_small_lm.training.callbacks.depth import DepthMonitor
from lit_small_lm.training.callbacks.ema import EMA
from lit_small_lm.training.callbacks.guard import Diverged, Guard
from lit_small_lm.training.callbacks.progress import RunProgress
from lit_small_lm.training.callbacks.run_files import RunFiles
from lit_small_lm.training.callbacks.step_metrics import StepMetrics
from lit_small_lm.training.callbacks.stopping import Interrupted, Stopping
from lit_small_lm.training.callbacks.wsd import WSDSchedule
from lit_small_lm.training.compiled import MODES
from lit_small_lm.training.lit import LanguageModule
from lit_small_lm.training.logger import RunLogger
from lit_small_lm.training.optim import AdamW
from lit_small_lm.training.parallel import FSDP2
from lit_small_lm.training.run_dir import write_json
from lit_small_lm.training.saving import AtomicCheckpointIO

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
ACTIVATION_CHECKPOINTING = ("off", "layers")


def roots() -> dict[str, Option]:
    """The top-level options, as the request checker wants them."""
    trainer = {
        **lightning_parts.OPTIONS,
        "precision": {"choices": PRECISIONS},
    }
    return {
        "model": slot(LanguageModule),
        "data": group(TokenData),
        "optim": slot(Optim, AdamW()),
        "schedule": group(WSDSchedule),
        "checkpoints": group(Checkpoints),
        "guard": group(Guard),
        "depth": group(DepthMonitor),
        "trainer": group(Trainer, trainer),
        "compile": plain(str, "off", {"choices": MODES}),
        "activation_checkpointing": plain(str, "off", {"choices": ACTIVATION_CHECKPOINTING}),
        "max_tokens": plain(int | None, None, {"low": 1, "high": 2**53}),
        "timeout": plain(float, 600.0, {"above": 0, "high": 86400.0}),
        "draws": plain(int, 4, {"low": 1, "high": 2**20}),
        "ema_decay": plain(float | None, None, {"above": 0, "below": 1}),
        "seed_everything": plain(int, 0, {"low": 0, "high": 2**32 - 1}),
    }


parser = run_options.parser


def run(command: str, argv: list[str]) -> int:
    """Run one of the three commands; returns the exit status."""
    try:
        return _run(command, argv)
    finally:
        run_lock.let_go()


def _run(command: str, argv: list[str]) -> int:
    quiet()
    os.environ.pop("JSONARGPARSE_DEFAULT_ENV", None)  # options come from the command line and from files
    options, rest = run_options.take(command, run_options.with_packaged_files(argv))
    discover(options.plugins)
    restrict_parsing()
    if command != "fit":  # whose options are all looked at, before a run is
        parser(command).refuse_unknown(rest, roots())
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
        return _until_done(options, start, command, request)
    except Interrupted as stop:
        command = run_options.resume_command(stop.run_dir, options.plugins)
        report.say(f"{stop}; checkpoint saved; go on with: {command}")
        return 128 + stop.number


def _until_done(options: Any, start: Start, command: str, request: Request) -> int:
    """Run the command, and again from an earlier checkpoint as often as the run goes back to one."""
    while True:
        try:
            LitCLI(options, start, command, request)
            return 0
        except rewinding.Rewind as back:
            report.say(str(back))
            options.run_dir, options.resume, start = back.run_dir, True, back.start
            options.branch_from = options.init_from = None
            request = check_request([], roots(), base=start.base)


class LitCLI(LightningCLI):
    """LightningCLI around LanguageModule and TokenData.

    Args:
        options: the run's options (run directory, resume and so on).
        start: where the command starts from.
        command: the command.
        request: the configuration.
    """

    def __init__(self, options: Any, start: Start, command: str, request: Request) -> None:
        self.options, self.start, self.command = options, start, command
        begin(request)
        super().__init__(
            LanguageModule,
            TokenData,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=ShortErrors,
            parser_kwargs={"prog": "lit-small-lm", command: {"description": run_options.TEXT}},
            subclass_mode_model=True,
            args=request.spelled(command),
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:
        """The one command, and what it fills in itself: the parsers of the others would be built for nothing."""
        loaders = {"train_dataloaders", "val_dataloaders"} if self.command == "fit" else {"dataloaders", "verbose"}
        return {self.command: {"model", "datamodule", "ckpt_path", "weights_only", *loaders}}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=int, default=0, help="seed of init, data order and dropout")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--optim", type=Optim, default=AdamW(), help="the optimizer")
        how = "off, layers (one layer of each kind, quick to compile), or a mode of torch.compile, such as default"
        parser.add_argument("--compile", type=str, default="off", help=how)
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
        parser.add_argument(
            "--timeout",
            type=float,
            default=600.0,
            help="seconds that the processes of a run wait for one that does not answer, before all end",
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
        parser.add_lightning_class_args(Guard, "guard")
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
            self.datamodule.left_out, config.guard.rewound = self.start.left_out, self.start.rewound

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self.config_init[self.subcommand]
        config = {**settings.trainer, **kwargs}
        config["plugins"] = [*listed(config["plugins"]), AtomicCheckpointIO()]
        if self.subcommand != "fit":
            return lightning_parts.make_trainer({**config, "logger": False, "enable_progress_bar": False})
        config["logger"] = [
            RunLogger(),
            *(logger for logger in listed(config["logger"]) if not isinstance(logger, bool)),
        ]
        lightning_parts.refuse_twice(listed(config["callbacks"]))
        average = [] if settings.ema_decay is None else [EMA(settings.ema_decay)]
        if self.datamodule.store is None:
            lightning_parts.refuse_unlogged(listed(config["callbacks"]), self.model.monitored(self.datamodule.source))
        together = Processes(self.config_text, settings.timeout)
        config["callbacks"] = [together, *listed(config["callbacks"]), *average, *self._callbacks(settings)]
        trainer = lightning_parts.make_trainer(config)
        for callback in average:
            callback.refuse_sharded(trainer.strategy)
        settings.guard.refuse_processes(trainer)
        own_launcher(trainer)
        return trainer

    def _callbacks(self, settings: Any) -> list[Callback]:
        """Step metrics first, depth after them, and checkpoints last, so that a checkpoint holds the counters of its
        step and comes after every line of it."""
        self.files = RunFiles(self.config_text, self.options.run_dir, self.start.step if self.options.resume else 0)
        begun = converting.begun(self.model, self.options.init_from, self.start.record)
        shown = [report.Announcement(settings.trainer.precision, self.why), *begun, RunProgress()]
        return [
            StepMetrics(),
            settings.guard,
            settings.depth,
            settings.schedule,
            self.files,
            *([] if settings.trainer.enable_progress_bar is False else shown),
            settings.checkpoints,
            Stopping(settings.checkpoints),
        ]

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
            with freed_memory(self.config[self.subcommand].trainer.accelerator):
                self.trainer.fit(model, datamodule=self.datamodule, ckpt_path=checkpoint, weights_only=True)
        except Interrupted:
            raise  # all processes are told, and end
        except BaseException as error:
            if isinstance(strategy.launcher, Launcher):
                strategy.launcher.end()  # the processes it started would wait for this one
            answer = self._answer(error)
            if answer is error:
                raise
            raise answer from None
        if self.trainer.is_global_zero:
            report.finish(self.files.folder, self.trainer, model, self.options.plugins)

    def _answer(self, error: BaseException) -> BaseException:
        """What to raise for an error in training."""
        if isinstance(
            error, (MisconfigurationException, ModuleNotFoundError)
        ):  # the latter: DeviceStatsMonitor's psutil
            return RequestError(f"trainer: {' '.join(str(error).split())}")
        if isinstance(error, Diverged):
            guard = self.config_init[self.subcommand].guard
            return rewinding.answer(error, guard, self.datamodule, self.files.folder)
        return explained(error, self.trainer, self.datamodule) if isinstance(error, Exception) else error

    def validate(self, model: LanguageModule, **kwargs: Any) -> None:
        """Score the validation split with the checkpoint."""
        self._evaluate(self.trainer.validate, "validation")

    def test(self, model: LanguageModule, **kwargs: Any) -> None:
        """Score the test split once, and write test.json into the run directory."""
        result = self._evaluate(self.trainer.test, "test")
        scored = self.start.checkpoint.absolute()
        folder = self.options.run_dir or (scored if scored.is_dir() else scored.parent.parent)
        folder.mkdir(parents=True, exist_ok=True)
        if self.trainer.is_global_zero:
            write_json(folder / "test.json", result)
            report.say(f"written: {folder / 'test.json'}")

    def _evaluate(self, score: Any, split: str) -> dict[str, Any]:
        checkpoint = str(self.start.checkpoint)
        score(self.model, datamodule=self.datamodule, ckpt_path=checkpoint, weights_only=True, verbose=False)
        record = {
            "split": split,
            "likelihood": self.model.objective.bound,
            "precision": self.trainer.precision,
            "checkpoint": checkpoint,
            "step": self.start.step,
            **{re.sub("^loss", "nats_per_token", name): value for name, value in self.model.results.items()},
        }
        if self.trainer.is_global_zero:
            for line in report.score_lines(record):
                report.say(line)
        return {key: None if value != value else value for key, value in record.items()}  # NaN is no JSON
