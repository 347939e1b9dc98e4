"""Benchmarks: every quick form prints records, and what they share measures what it says."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
PROCESSES = ("distribution", "intervals", "telemetry")
"""Those whose quick form runs as it does for a user, in a process of its own; the others run in this one."""
BEYOND = ("gpu", "training")
"""Those that are tested by themselves: one prints under the names of its parts, the other needs many processes."""
NAMES = sorted({path.stem for path in FOLDER.glob("[a-z]*.py")} - set(BEYOND))
CHILD = """
import sys, time
from measuring.turns import Turns
turns = Turns()
turns.ready(name=sys.argv[1])
for number in range({steps}):
    end = time.process_time() + float(sys.argv[2])
    while time.process_time() < end:
        pass
    if number == 2 and sys.argv[1] == "breaks":
        raise SystemExit("broken on purpose")
    turns.step()
"""


@pytest.fixture
def measuring(monkeypatch):
    """The benchmarks' folder as a script of theirs sees it; what they set in the environment goes again."""
    before = dict(os.environ)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    os.environ.clear()
    os.environ.update(before)


def records(text, name):
    found = [json.loads(line) for line in text.splitlines()]
    return found and all(record["benchmark"] == name for record in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in PROCESSES])
def test_quick_form_prints_records(name, measuring, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(FOLDER / f"{name}.py"), "--quick"])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert records(capfd.readouterr().out, name)


@pytest.mark.slow
def test_the_quick_form_of_the_gpu_benchmark_runs_without_one():
    command = [sys.executable, str(FOLDER / "gpu.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record for record in found if "failed" in record or "left_out" in record] == []
    parts = "ceilings train objectives documents diffusion memory decoding compile"
    assert {record["benchmark"] for record in found} == {f"gpu {part}" for part in parts.split()}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_quick_form_of_processes_prints_records(name, tmp_path):
    command = [sys.executable, str(FOLDER), name, "--quick"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert records(done.stdout, name)


@pytest.mark.parametrize(
    ("name", "options", "wrong"),
    [
        ("training", "--turns 0", "--turns: '0'; allowed: whole numbers from 1 on"),
        ("training", "--steps -1", "--steps: '-1'; allowed: whole numbers from 1 on"),
        ("training", "--threads 1 0", "--threads: '0'; allowed: whole numbers from 1 on"),
        ("training", "--peers fit nope", "--peers: invalid choice: 'nope' (choose from "),
        ("training", "--shape S3", "--shape: invalid choice: 'S3' (choose from "),
        ("generation", "--batch 0", "--batch: '0'; allowed: whole numbers from 1 on"),
        ("generation", "--rounds few", "--rounds: 'few'; allowed: whole numbers from 1 on"),
    ],
)
def test_what_is_asked_wrongly_is_answered_in_one_line(name, options, wrong, measuring, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(FOLDER / f"{name}.py"), *options.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith(f"{name}.py: argument {wrong}")


def test_every_peer_of_a_contest_may_be_asked_for(measuring):
    from measuring.commands import PEERS
    from measuring.peer import OBJECTIVES, PLAIN

    contests = runpy.run_path(str(FOLDER / "training.py"))["CONTESTS"]
    assert {peer for peers in contests.values() for peer in peers} <= set(PEERS)
    assert {*OBJECTIVES, *PLAIN} - {"litgpt"} <= set(PEERS)


def race_of(names, tmp_path, turns=3):
    from measuring import turns as room

    file, steps = tmp_path / "child.py", (room.WARM_TURNS + turns) * 2
    file.write_text(CHILD.format(steps=steps))
    commands = {name: [sys.executable, str(file), name, str(seconds)] for name, seconds in names.items()}
    return room.race(commands, {"PYTHONPATH": str(FOLDER)}, turns, 2)


def test_peers_take_turns_and_tell_what_a_step_took(measuring, tmp_path):
    from measuring.turns import compared

    found = race_of({"short": 0.004, "long": 0.012}, tmp_path)
    assert [outcome.settings["name"] for outcome in found.values()] == ["short", "long"]
    assert all(len(outcome.steps) == 3 and outcome.peak_mb > 5 for outcome in found.values())
    assert found["short"].steps[0].processor >= 0.004 and found["long"].steps[0].processor >= 0.012
    against = compared(found["long"].steps, found["short"].steps, "processor")
    assert 0.2 < against["ratio"] < 0.6 and 4 < against["ms_more"] < 20


def test_a_peer_that_fails_is_named_with_its_last_words(measuring, tmp_path):
    with pytest.raises(RuntimeError, match="breaks.*broken on purpose"):
        race_of({"sound": 0.001, "breaks": 0.001}, tmp_path)


def test_medians_and_quartiles_of_ratios_are_of_pairs(measuring):
    from measuring.turns import Seconds, compared

    own, unit = [Seconds(1, 1), Seconds(2, 2), Seconds(4, 4)], [Seconds(1, 1), Seconds(4, 4), Seconds(12, 12)]
    assert compared(own, unit, "processor") == {"ratio": 2, "lower": 1.5, "upper": 2.5, "ms_more": -2000}
    assert compared(own[:1], unit[:1], "wall")["ratio"] == 1


@pytest.mark.parametrize("name", ["module", "masked", "block", "loop", "loop_masked", "loop_bf16"])
def test_every_peer_learns_a_batch(name, measuring):
    from measuring.cases import CASES
    from measuring.peer import built, stepping
    from scaling import rows_of

    torch.manual_seed(0)
    case = CASES["tiny"]._replace(rows=2, length=16)
    net, loss, optimizer = built(name, case)
    step, batch = stepping(net, loss, optimizer), rows_of(case)
    before = torch.stack([loss(batch, number) for number in range(4)]).mean()
    for number in range(6):
        step(batch, number)
    assert torch.stack([loss(batch, number) for number in range(4)]).mean() < before


def test_peers_have_the_same_number_of_parameters(measuring):
    from measuring.cases import CASES
    from measuring.peer import built

    counts = {name: sum(p.numel() for p in built(name, CASES["tiny"])[0].parameters()) for name in ("module", "loop")}
    assert counts["module"] == counts["loop"]


def test_peers_that_do_not_train_the_same_are_refused(measuring, monkeypatch):
    import training
    from measuring.turns import Outcome, Seconds

    settings = {"precision": "32-true", **{name: 1 for name in training.AGREED}}
    outcomes = {
        "loop": Outcome(settings, Seconds(1, 1), [Seconds(1, 1)], 1.0),
        "fit": Outcome({**settings, "clip": None}, Seconds(1, 1), [Seconds(1, 1)], 1.0),
    }
    monkeypatch.setattr(training, "prepared", lambda *_: None)
    monkeypatch.setattr(training, "race", lambda *_: outcomes)
    with pytest.raises(RuntimeError, match="do not train the same: clip"):
        training.measured(("loop", "fit"), "S1", {}, 1, 1)
    outcomes["loop_bf16"] = outcomes["loop"]
    with pytest.raises(RuntimeError, match="loop_bf16 trains in 32-true"):
        training.measured(("loop", "loop_bf16"), "S1", {}, 1, 1)


def test_figures_are_of_this_runs_products(measuring):
    import training
    from measuring.cases import CASES
    from measuring.turns import Outcome, Seconds

    case = CASES["S1"]
    loop = Outcome({"parameters": 7_377_152}, Seconds(9, 9), [Seconds(2, 1)] * 3, 1000.0)
    ruler = Outcome({"gflop": 17.0}, Seconds(1, 1), [Seconds(0.2, 0.1)] * 3, 100.0)
    (line,) = training.figures({"loop": loop, training.RULER: ruler}, case, 1)
    assert line["tokens_per_processor_second"] == 2048 and line["tokens_per_second"] == 1024
    assert line["gflops"] == pytest.approx(2048 * case.mflop(7_377_152) / 1000, abs=0.1)
    assert line["percent"] == pytest.approx(100 * line["gflops"] / 170, abs=0.1)
    assert case.mflop(7_377_152) == pytest.approx(50.5, abs=0.1)


def test_operations_are_sorted_by_kind(measuring):
    from profiling import ORDER, kind_of

    assert kind_of(["aten::mm"], [[2048, 256], [256, 4096]], 4096) == "products of the head"
    assert kind_of(["aten::mm"], [[2048, 256], [256, 688]], 4096) == "products of the layers"
    assert kind_of(["aten::_scaled_dot_product_flash_attention_for_cpu"], [], 4096) == "attention"
    assert kind_of(["aten::bmm", "lit_small_lm::piecewise_attention"], [], 4096) == "attention"
    assert kind_of(["aten::_fused_adamw_"], [], 4096) == "optimizer"
    assert kind_of(["ViewBackward0"], [], 4096) == ORDER[-1]


def test_break_even_lies_between_what_was_measured(measuring):
    from generation import break_even

    assert break_even({2: 50.0, 4: 100.0}, 75.0) == 3.0
    assert break_even({2: 50.0, 4: 100.0}, 40.0) == 2.0
    assert break_even({2: 50.0, 4: 100.0}, 120.0) is None


def test_kept_lines_say_where_they_come_from(measuring, monkeypatch, tmp_path):
    from measuring import record

    monkeypatch.setattr(record, "RESULTS", tmp_path)
    line = json.loads(record.keep('{"benchmark": "data", "machine": "x86_64"}'))
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text()) == line
    assert "cores of" in line["machine"] and {"date", "command", "commit", "versions"} <= set(line)


def test_the_page_holds_the_newest_figure_against_its_bar(measuring):
    from measuring.page import Row, newest, of, profile, ratio, table

    place = {"command": "python x", "date": "2026-01-02", "commit": "abc", "load": 1.5}
    line = {"benchmark": "training", "threads": 1, "peer": "fit", **place}
    found = [{"ratio": 0.9, "lower": 0.8, "upper": 1.0}, {"ratio": 1.1, "lower": 0.8, "upper": 1.2}]
    lines = [{**line, "over": {"loop": over}} for over in found]
    rows = [Row("a", ratio("loop", peer="fit"), 1.0, ">="), Row("b", ratio("module", peer="fit"), 1.0, ">=")]
    rows += [Row("c", of("training", "over", "loop", "ratio", peer="fit"), 1.0, "<=")]
    text = table(rows, newest(lines)).splitlines()[2:]
    assert text[0] == "| a | 1.10 | 0.8 to 1.2 | >= 1.0 | met | `python x`, abc, load 1.5 |"
    assert "not measured" in text[1] and "| not met |" in text[2]
    share = {"benchmark": "profiling", "shape": "S1", "label": "before", "percent": {"attention": 12.5}, **place}
    assert "| attention | 12.5 |" in profile([share])
