"""What validation, checkpoints and depth telemetry cost at their default intervals, and memory over many steps.

    python benchmarks/intervals.py [--shape S1] [--turns N] [--long_steps N] [--quick]

prints one JSON line for the costs and one for memory. For the costs, `fit` without any of the three and one `fit` with
each, once a turn of a few steps, train in turn; what the turn takes more is the cost of one, in units of a step, and
the per cent is that over the default interval. The last step of a run, which always saves, is left out.

For memory one `fit` of a tiny network takes 3,000 steps, with validation, checkpoints and telemetry at their intervals;
what the system says it holds is read every 100 steps.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from measuring.cases import CASES
from measuring.commands import environment_of, fit, prepared
from measuring.record import say
from measuring.turns import WARM_TURNS, Running, race

STEPS = 4
"""Of a turn."""
NEVER = str(10**6)
OFF = {
    "validation": ("--trainer.val_check_interval", NEVER),
    "checkpoints": ("--checkpoints.every_n_steps", NEVER),
    "telemetry": ("--depth.every_n_steps", NEVER),
}
INTERVALS = {"validation": 200, "checkpoints": 200, "telemetry": 100}
"""The defaults, in steps."""


def options(measured: str | None) -> list[str]:
    """Those of a run in which only one of the three comes with every turn."""
    words = {
        name: (option, str(STEPS)) if name == measured else (option, never) for name, (option, never) in OFF.items()
    }
    return [word for pair in words.values() for word in pair]


def costs(shape: str, turns: int) -> dict[str, object]:
    """The cost of each, from steps taken in turn."""
    steps, environment = (WARM_TURNS + turns + 1) * STEPS, environment_of("kept", 1)
    with tempfile.TemporaryDirectory() as made:
        prepared(shape, steps, Path(made), environment)
        commands = {"none": fit("none", shape, steps, Path(made), options(None))}
        commands |= {name: fit(name, shape, steps, Path(made), options(name)) for name in OFF}
        found = race(commands, environment, turns, STEPS)
    plain = [step.processor for step in found["none"].steps]
    record: dict[str, object] = {"step_ms": round(1000 * statistics.median(plain), 1)}
    total = 0.0
    for name, interval in INTERVALS.items():
        more = [STEPS * (step.processor / without - 1) for step, without in zip(found[name].steps, plain, strict=True)]
        total += 100 * statistics.median(more) / interval
        record[name] = {
            "in_steps": round(statistics.median(more), 2),
            "lowest": round(min(more), 2),
            "highest": round(max(more), 2),
            "percent_at_default": round(100 * statistics.median(more) / interval, 2),
        }
    return {"shape": shape, "turns": turns, **record, "percent_together": round(total, 2)}


def memory(shape: str, turns: int, every: int) -> dict[str, object]:
    """What a run holds after every so many steps, in MB of 10^6 bytes."""
    environment, held = environment_of("default", 1), []
    with tempfile.TemporaryDirectory() as made:
        prepared(shape, 1, Path(made), environment)
        peer = Running("fit", fit("fit", shape, turns * every, Path(made)), environment, every)
        for _ in range(turns):
            peer.turn()
            held.append(round(peer.held_mb(), 1))
        peak = peer.end()
    third = turns // 3
    return {
        "shape": shape,
        "steps": turns * every,
        "held_mb": held,
        "growth_of_last_two_thirds_mb": round(held[-1] - held[third], 1),
        "peak_mb": round(peak, 1),
    }


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=CASES, default="S1")
    parser.add_argument("--turns", type=int, default=5, help="that are counted")
    parser.add_argument("--long_steps", type=int, default=3000)
    parser.add_argument("--quick", action="store_true", help="memory over a few steps alone")
    asked = parser.parse_args()
    if not asked.quick:
        say("intervals", costs(asked.shape, asked.turns))
    every = 1 if asked.quick else 100
    say("intervals", memory("tiny", 3 if asked.quick else asked.long_steps // every, every))


if __name__ == "__main__":
    main()
