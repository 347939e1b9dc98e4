"""Ranges of arguments whose classes are no Specs: ours that Lightning drives, and Lightning's own callbacks.

A Spec declares them on its fields (`spec.setting`); here they are declared beside the classes, so that the check of a
request, the schema for editors and the tests know of them before anything is built. What depends on several arguments
is left to the constructor.
"""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import callbacks, loggers, strategies

from lit_small_lm.cli.processes import Processes
from lit_small_lm.cli.schema import declare
from lit_small_lm.data.datamodule import TokenData
from lit_small_lm.training.callbacks.annealing import AttentionAnnealing
from lit_small_lm.training.callbacks.checkpoints import Checkpoints
from lit_small_lm.training.callbacks.clipped_noise import ClippedNoiseSearch
from lit_small_lm.training.callbacks.depth import DepthMonitor
from lit_small_lm.training.callbacks.ema import EMA
from lit_small_lm.training.callbacks.guard import Guard
from lit_small_lm.training.callbacks.mask_noise import MaskNoise
from lit_small_lm.training.callbacks.run_files import RunFiles
from lit_small_lm.training.callbacks.wsd import WSDSchedule
from lit_small_lm.training.parallel import FSDP2

Bounds = Mapping[str, Any]
MANY = 2**53
"""More steps, tokens or epochs than any run has; the largest whole number that JSON readers agree on."""
COUNT: Bounds = {"low": 1, "high": MANY}
SIZE: Bounds = {"low": 1, "high": 2**31}
STEPS: Bounds = {"low": 0, "high": MANY, "means": "whole steps, or a fraction from 0 to 1.0"}
SOME_STEPS: Bounds = {"above": 0, "high": MANY, "means": "whole steps, or a fraction up to 1.0"}
POSITIVE: Bounds = {"above": 0}
SHARES: Bounds = {"low": 0, "high": 1}

declare(
    TokenData,
    seq_len={"low": 1, "high": 2**24},
    **{name: {"low": 1, "high": 2**40} for name in ("batch_size", "batch_tokens", "micro_batch_size")},
    num_workers={"low": 0, "high": 256},
)
declare(WSDSchedule, warmup=STEPS, decay=STEPS, floor=SHARES)
declare(Checkpoints, every_n_steps=COUNT, keep={"low": 0, "high": 2**31})
declare(Guard, patience=COUNT, rewinds=COUNT, spike_sigmas=POSITIVE, spike_window={"low": 4, "high": 2**24})
declare(DepthMonitor, every_n_steps=COUNT, rows={"low": 1, "high": 2**20})
declare(Processes, timeout=POSITIVE)
declare(RunFiles, start_step={"low": 0, "high": MANY})
declare(AttentionAnnealing, steps=SOME_STEPS)
declare(ClippedNoiseSearch, width={"above": 0, "high": 1}, batches=SIZE)
declare(EMA, decay={"above": 0, "below": 1})
declare(MaskNoise, std=POSITIVE, steps=SOME_STEPS)
declare(FSDP2, tensor_parallel_size=SIZE, replicas=SIZE)
declare(
    strategies.DDPStrategy,
    model_averaging_period=COUNT,
    process_group_backend={"choices": ("gloo", "nccl", "mpi", "ucc", "xccl")},
)
declare(strategies.ModelParallelStrategy, data_parallel_size=SIZE, tensor_parallel_size=SIZE)
declare(loggers.CSVLogger, flush_logs_every_n_steps=COUNT)
declare(
    callbacks.EMAWeightAveraging,
    decay={"above": 0, "below": 1},
    update_every_n_steps=COUNT,
    update_starting_at_step={"low": 0, "high": MANY},
    update_starting_at_epoch={"low": 0, "high": MANY},
)
declare(callbacks.EarlyStopping, patience={"low": 0, "high": MANY})
declare(callbacks.LearningRateFinder, min_lr=POSITIVE, max_lr=POSITIVE, num_training_steps=COUNT)
declare(
    callbacks.ModelCheckpoint,
    save_top_k={"low": -1, "high": MANY},
    every_n_train_steps={"low": 0, "high": MANY},
    every_n_epochs={"low": 0, "high": MANY},
)
declare(callbacks.ModelSummary, max_depth={"low": -1, "high": 2**31})
declare(callbacks.StochasticWeightAveraging, annealing_epochs={"low": 0, "high": MANY})
declare(callbacks.TQDMProgressBar, refresh_rate={"low": 0, "high": MANY}, process_position={"low": 0, "high": 1000})
