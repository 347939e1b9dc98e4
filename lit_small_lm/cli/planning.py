"""The answers of `plan`: a plan, a proposal for a budget or a loss, or an explanation."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_small_lm.cli.lit import quiet
from lit_small_lm.cli.plan_subject import Overrides, subject_at
from lit_small_lm.cli.plan_table import proposed, table
from lit_small_lm.discovery import discover
from lit_small_lm.errors import RequestError
from lit_small_lm.planning import budget, devices, proposals
from lit_small_lm.planning.counts import parameters
from lit_small_lm.planning.devices import ARITHMETIC_OF, UTILISATION
from lit_small_lm.planning.explain import explain
from lit_small_lm.planning.flops import flops
from lit_small_lm.planning.memory import training
from lit_small_lm.planning.outline import Outline
from lit_small_lm.planning.plan import Conditions, Planned, plain, plan
from lit_small_lm.plugin import Dims

DEFAULT = ["--model", "AutoregressiveLM"]
"""What a proposal is for where no configuration is named."""


@dataclass(frozen=True)
class Answer:
    """What is printed: lines, or data for JSON."""

    lines: list[str]
    data: dict[str, Any]


def answer(place: str | None, argv: Sequence[str], options: argparse.Namespace) -> Answer:
    """Answer a request.

    Raises:
        RequestError: something in it is wrong, or it asks for two things at once.
        RunError: a checkpoint is damaged.
    """
    asked = [name for name in ("budget", "target_loss", "explain") if vars(options)[name] not in (None, False)]
    if len(asked) > 1:
        raise RequestError(f"--{asked[0]} and --{asked[1]} exclude each other: give one")
    quiet()
    discover(options.plugins)
    cost = None if options.budget is None else budget.read(options.budget)
    device = None if options.device is None else devices.by_name(options.device)
    named = any(word.split("=")[0] in ("-c", "--config", "--model") for word in argv)
    if place is None and not named:
        if not asked:
            raise RequestError("CONFIG: missing; give a configuration, a run, or a public model's config.json")
        argv = [*DEFAULT, *argv]
    subject = subject_at(place, argv, Overrides(options.vocab_size, options.head, device))
    if options.explain:
        text = explain(subject.outline, subject.workload.objective.kind)
        return Answer(text.splitlines(), {"source": subject.source, "explanation": text})
    if asked:
        return _proposal(subject, options, cost, device)
    found = plan(
        subject,
        Conditions(
            device=device,
            utilisation=options.utilisation or UTILISATION,
            price=options.price,
            unique_tokens=options.unique_tokens,
        ),
    )
    return Answer(table(found), plain(found))


def _proposal(
    subject: Planned,
    options: argparse.Namespace,
    cost: budget.ComputeBudget | None,
    device: devices.Device | None,
) -> Answer:
    workload = subject.workload
    arithmetic, utilisation = ARITHMETIC_OF[workload.precision], options.utilisation or UTILISATION
    means = proposals.Means(
        sizing=lambda dims: _counted(subject, dims).active_size,
        total=lambda dims: _counted(subject, dims).size,
        flops_per_token=lambda dims: _training_flops(subject, dims),
        memory=lambda dims: training(_at(subject, dims), workload).total_bytes,
        like=subject.outline.dims,
        device=device,
        arithmetic=arithmetic,
        utilisation=utilisation,
        count=workload.processes,
        price=options.price or (cost and cost.price),
    )
    bound, unique = workload.objective.bound, options.unique_tokens
    if cost is None:
        found = proposals.for_loss(options.target_loss, means, bound, unique=unique)
    else:
        wanted = cost.on(device, arithmetic, utilisation, workload.processes)
        found = proposals.for_budget(wanted, means, bound, unique=unique)
    return Answer(proposed(found), {"source": subject.source, **plain(found)})


def _at(subject: Planned, dims: Dims) -> Outline:
    return Outline(subject.outline.spec, dims, subject.outline.vocab_size)


def _counted(subject: Planned, dims: Dims):
    return parameters(_at(subject, dims))


def _training_flops(subject: Planned, dims: Dims) -> int:
    outline, workload = _at(subject, dims), subject.workload
    return flops(outline, parameters(outline), workload.seq_len, workload.objective).training_per_token
