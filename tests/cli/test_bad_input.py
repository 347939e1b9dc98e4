"""What people mistype: every fault is named in one line, with the right status, and leaves nothing behind."""

import io
import itertools
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from lit_small_lm import __version__
from lit_small_lm.__main__ import main
from lit_small_lm.checkpoint import checkpoints_in, read
from lit_small_lm.cli.complaint import complain, told
from lit_small_lm.errors import RequestError, request_lines
from lit_small_lm.training.score import METRICS, DocumentNLL

SHAPE, LAYER, CALLBACKS = "--model.shape.", "--model.backbone.layer.", "--trainer.callbacks"
C = ["-c", "c.yaml"]


def bad(*argv, says, files=None, status=2):
    return {"argv": argv, "says": says, "files": files or {}, "status": status}


def in_file(text, *says):
    return bad(*C, says=says, files={"c.yaml": text})


def flag(name, value, *says):
    return bad(f"--{name}", value, says=[f"--{name}: ", *says])


def watching(options):
    return f"trainer:\n  callbacks:\n  - class_path: EarlyStopping\n    init_args: {{{options}}}\n"


COMMAND_LINE = {
    "A01 letters swapped": flag("model.shape.dmi", "8", "did you mean --model.shape.dim?"),
    "A01 in the middle": flag("trainer.max_stpes", "8", "did you mean --trainer.max_steps?"),
    "A01 at the top": flag("optmi.lr", "8", "'optmi' is not an option", "did you mean --optim.lr?"),
    "A03 in a file": in_file(
        "trainer:\n  dim: 4\n", "c.yaml:2: trainer.dim", "not an option of Trainer", "it belongs under model.shape"
    ),
    "A03 at the top of a file": in_file("seq_len: 4\n", "c.yaml:1: seq_len", "it belongs under data"),
    "A03 as a flag": flag("data.lr", "1", "did you mean --optim.lr?"),
    "A05 flag": flag("model.shape.dim", "8.5", "8.5; allowed: a whole number, at least 1"),
    "A05 file": in_file("data: {seq_len: 8.5}\n", "c.yaml:1: data.seq_len: 8.5; allowed: a whole number"),
    "A07 true for a number": flag("data.seq_len", "true", "true; allowed: a whole number"),
    "A07 1 for a boolean": in_file(
        "trainer: {deterministic: 1}\n", "trainer.deterministic: 1; allowed: ", "true or false"
    ),
    "A09 flag": flag("schedule.warmup", "nan", "is not finite"),
    "A09 file": in_file("optim: {lr: -.inf}\n", "c.yaml:1: optim.lr: -.inf is not finite; allowed: a number, above 0"),
    "A09 a number beyond all floats": flag("optim.lr", "9" * 400, "is not finite"),
    "A09 text that is not a number": flag("trainer.val_check_interval", "nan", "allowed: ", "text like DD:HH:MM:SS"),
    "A11 no such file": bad("-c", "nowhere.yaml", says=["-c: 'nowhere.yaml' does not exist", "/nowhere.yaml"]),
    "A11 a directory": bad("-c", "d", says=["'d' is a directory"], files={"d/x.yaml": ""}),
    "A11 a name too long": bad("-c", "x" * 5000, says=["-c: 'xxx", "cannot be read: File name too long"]),
    "A13 empty": in_file("", "c.yaml: is empty"),
    "A13 only a document mark": in_file("---\n...\n", "c.yaml: is empty"),
    "A15 not UTF-8": in_file(b"data: \xff\n", "c.yaml: byte 6 (0xff) is not UTF-8"),
    "A15 an argument that is not UTF-8": bad(
        "--data.source.path", "caf\udce9", says=[r"caf\udce9: holds bytes that are not UTF-8"]
    ),
    "an argument with NUL": bad("--run_dir", "a\0b", says=[r"a\x00b: holds a NUL character"]),
    "A17 twice": in_file(
        "optim:\n  lr: 1e-3\n  lr: 1e-4\n", "c.yaml:3: lr: given twice in one mapping, on lines 2 and 3"
    ),
    "A19 a tag": in_file(
        "data: !!python/object/apply:os.system [touch x]\n", "c.yaml:1: tag !!python/object/apply:os.system is refused"
    ),
    "A21 directly": in_file("config: c.yaml\n", "a file that includes itself: c.yaml -> c.yaml"),
    "A21 through another": bad(
        *C,
        says=["d.yaml:1: ", "includes itself: c.yaml -> d.yaml -> c.yaml"],
        files={"c.yaml": "config: d.yaml\n", "d.yaml": "config: c.yaml\n"},
    ),
    "A23 a later version": in_file(
        "lit_small_lm: 99.1.0\n",
        "c.yaml:1: lit_small_lm: lit-small-lm 99.1.0 wrote this",
        f"this is lit-small-lm {__version__}",
    ),
    "A23 with its keys": in_file("lit_small_lm: 99.1\ntrainer: {new_key: 3}\n", "99.1 wrote this", __version__),
    "A23 no version": in_file("lit_small_lm: soon\n", "'soon'; allowed: a version such as"),
    "a home that nobody has": bad("-c", "~nobody_at_all/c.yaml", says=["~nobody_at_all/c.yaml: no user is called"]),
    "a run in a home that nobody has": bad("--run_dir", "~nobody_at_all/r", says=["--run_dir: ", "no user is called"]),
    "text in a home that nobody has": bad("--data.source.path", "~nobody_at_all/t", says=["no user is called"]),
    "a device for a file": bad("-c", "/dev/zero", says=["-c: '/dev/zero' is no regular file"]),
    "a file too large": in_file(
        "#" * (1 << 20) + "\n", "c.yaml' has 1,048,577 bytes, and a configuration at most 1,048,576"
    ),
    "brackets without end": in_file("[" * 10_000, "c.yaml: not valid YAML: "),
    "a bomb of anchors": in_file(
        "a: &a [x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in itertools.pairwise("abcdef")),
        "c.yaml: holds too many values or is nested too deeply",
    ),
    "what cannot be merged": in_file("<<: [1, 2]\n", "c.yaml:1: <<: merges what is no mapping"),
    "UTF-16": in_file("trainer: {max_steps: 4}\n".encode("utf-16"), "c.yaml: byte 0 (0xff) is not UTF-8"),
    "a byte order mark and CRLF": in_file(
        b"\xef\xbb\xbftrainer:\r\n  max_steps: 1.5\r\n", "c.yaml:2: trainer.max_steps: 1.5"
    ),
    "two documents": in_file("a: 1\n---\nb: 2\n", "c.yaml:2: not valid YAML: ", "another document"),
    "octal or decimal": in_file("trainer: {max_steps: 017}\n", "c.yaml:1: trainer.max_steps: '017'; allowed: "),
    "digits of another script": flag("trainer.max_steps", "٣", "'٣'; allowed: a whole number"),
    "hours and minutes": in_file("trainer: {max_steps: 1:30}\n", "'1:30'; allowed: a whole number"),
    "an option after --": bad("--", "--optim.lr", "1", says=["--: options begin with --"]),
    "a short form": flag("trainer.max_step", "4", "did you mean --trainer.max_steps?"),
    "an option a hundred thousand letters long": bad("--" + "x" * 100_000, "1", says=["is not an option"]),
    "braces and percent signs": flag("optim", "%s{0}%(x)d", "'%s{0}%(x)d' is not a known Optim"),
    "escapes": flag("model.backbone.norm", "\x1b[2J", r"'\x1b[2J' is not a known NormScheme"),
}
ARCHITECTURE = {
    "B01": bad(SHAPE + "n_heads", "3", says=["dim 16", "n_heads 3", "remainder 1"]),
    "B03": bad(SHAPE + "n_kv_heads", "4", says=["n_heads 2", "n_kv_heads 4", "remainder 2"]),
    "B05 heads": flag("model.shape.n_heads", "-2", "-2; allowed: a whole number, at least 1"),
    "B05 layers": flag("model.shape.n_layers", "0", "0; allowed: a whole number, at least 1"),
    "far too wide": flag("model.shape.dim", "1000000000000", "at most 1048576"),
    "far too deep": flag("model.shape.n_layers", "1000000000", "at most 10000"),
    "B07 range": flag("model.backbone.positions.share", "1.5", "1.5; allowed: a number, above 0, at most 1"),
    "B07 odd": bad(
        "--model.backbone.positions.share", "0.4", says=["positions.share 0.4", "rotates 3 channels; allowed: even"]
    ),
    "B09": bad(
        LAYER + "canon_at",
        "A",
        LAYER + "canon.kernel",
        "0",
        says=["canon.kernel: 0; allowed: a whole number, at least 1"],
    ),
    "a Canon letter": bad(LAYER + "canon_at", "AX", says=["canon_at: 'AX'; allowed: letters of ABCD"]),
    "B15 an empty pattern": bad("--model.backbone.pattern", "[]", says=["pattern", "empty"]),
    "B15 an unknown kind": bad(
        "--model.backbone.pattern", "[layre]", says=["'layre' is not a known kind of layer", "did you mean layer?"]
    ),
    "a window": flag("model.backbone.layer.mixer.window", "-1", "-1; allowed: a whole number or null, at least 1"),
    "B17 zero": flag("model.backbone.norm.norm.eps", "0", "0; allowed: a number, above 0"),
    "B17 negative": flag("model.backbone.norm.norm.eps", "-1e-5", "-1e-5; allowed: a number, above 0"),
    "B19": in_file(
        "model: {class_path: AutoregressiveLM, init_args: {backbone: {head_width: 3}}}\n",
        "'head_width' is not an option of BackboneSpec",
    ),
}
TRAINING = {
    "a cache folder that is a file": bad(
        "--data.cache_dir", "f/below", says=["data.cache_dir: f/below: ", "/f is a file"], files={"f": "x"}
    ),
    "no time at all": bad(
        "--trainer.max_time", "00:00:00:00", says=["trainer.max_time: '00:00:00:00'; allowed: more than no time"]
    ),
    "less than no time": in_file("trainer: {max_time: {hours: -1}}\n", "allowed: more than no time"),
    "B13": bad(
        "--model",
        "DiffusionLM",
        "--model.objective",
        "BlockDiffusion",
        "--model.objective.block_size",
        "999",
        says=["block_size"],
    ),
    "more processes than a CPU takes": bad(
        "--trainer.devices", "10000000", says=["10000000 processes on ", "at most "]
    ),
    "C01": flag("optim.lr", "-1", "-1; allowed: a number, above 0"),
    "C03": bad(
        "--optim.lr",
        "1e6",
        "--schedule.warmup",
        "0",
        "--trainer.max_steps",
        "40",
        "--run_dir",
        "run",
        says=["step ", "train/loss", "train/grad_norm"],
        status=1,
    ),
    "C05 warm-up": bad(
        "--schedule.warmup", "-1", says=["--schedule.warmup: -1; allowed: whole steps, or a fraction from 0 to 1.0"]
    ),
    "C05 decay": bad("--schedule.decay", "1.5", says=["schedule.decay: 1.5; allowed: "]),
    "C11 none": bad("--trainer.max_steps", "-1", says=["trainer.max_steps", "trainer.max_epochs", "max_tokens"]),
    "C11 two": bad("--trainer.max_epochs", "1", says=["trainer.max_steps", "trainer.max_epochs"]),
    "C11 least and most": bad("--trainer.min_steps", "9", says=["trainer.min_steps: 9", "trainer.max_steps is 4"]),
    "C13": flag("trainer.max_steps", "-5", "-5; allowed: a whole number, at least -1"),
    "C15": flag("ema_decay", "1.5", "1.5; allowed: a number or null, above 0, below 1"),
    "C17 optimizer": flag("optim", "AdamX", "'AdamX' is not a known Optim; known: AdamW", "did you mean AdamW?"),
    "C17 model": flag("model", "DiffusoinLM", "'DiffusoinLM' is not a known LanguageModule; known: AutoregressiveLM"),
    "C23 flag": bad(
        CALLBACKS,
        "EarlyStopping",
        CALLBACKS + ".monitor",
        "val/los",
        says=["EarlyStopping has monitor 'val/los', which is never logged; known: val/loss", "did you mean val/loss?"],
    ),
    "C23 file": in_file(watching("monitor: accuracy"), "monitor 'accuracy', which is never logged; known: val/loss"),
    "a callback's option": in_file(
        watching("monitor: val/loss, patiense: 3"),
        "c.yaml:4: trainer.callbacks[0].patiense",
        "not an option of EarlyStopping",
    ),
    "a callback's value": in_file(
        watching("monitor: val/loss, patience: x"),
        "c.yaml:4: trainer.callbacks[0].patience: 'x'; allowed: a whole number",
    ),
    "a callback's constructor": in_file(
        watching("monitor: val/loss, mode: x"), "EarlyStopping: `mode` can be min, max, got x"
    ),
    "a callback without what it needs": bad(
        CALLBACKS, "EarlyStopping", says=["--trainer.callbacks.monitor: not given"]
    ),
    "a callback's name": flag(
        "trainer.callbacks", "EarlyStoping", "'EarlyStoping' is not a known Callback", "did you mean EarlyStopping?"
    ),
    "a callback of two": in_file(
        "trainer:\n  callbacks: [Timer, EarlyStoping]\n", "c.yaml:2: trainer.callbacks[1]: 'EarlyStoping'"
    ),
    "a module is no callback": in_file(
        "trainer: {callbacks: [{class_path: os.system}]}\n", "trainer.callbacks[0]: 'os.system' is not a known Callback"
    ),
    "a callback's option first": flag(
        "trainer.callbacks.monitor", "x", "choose a Callback first, with --trainer.callbacks"
    ),
    "a callback that looks for what is decided": bad(
        "--trainer.callbacks",
        "BatchSizeFinder",
        says=["BatchSizeFinder does not go with this trainer: rows are shared out by"],
    ),
    "processes that leave nothing to report": flag("trainer.strategy", "ddp_notebook", "is not a known Strategy"),
    "a way to talk": bad(
        "--trainer.strategy",
        "DDPStrategy",
        "--trainer.strategy.process_group_backend",
        "goo",
        says=["'goo'; allowed: one of gloo, nccl", "did you mean gloo?"],
    ),
    "a logger": flag("trainer.logger", "CSVLoger", "did you mean CSVLogger?"),
    "a strategy": flag("trainer.strategy", "ddpp", "'ddpp' is not a known Strategy", "did you mean ddp?"),
    "a strategy's value": bad(
        "--trainer.strategy",
        "ModelParallelStrategy",
        "--trainer.strategy.data_parallel_size",
        "x",
        says=["--trainer.strategy.data_parallel_size: 'x'; allowed: one of auto or a whole number"],
    ),
    "fp16 in shards": bad(
        "--trainer.strategy",
        "FSDP2",
        "--trainer.devices",
        "2",
        "--trainer.precision",
        "16-mixed",
        says=["16-mixed", "strategy='FSDP2'"],
    ),
    "a precision": flag("trainer.precision", "bf16-mixd", "did you mean bf16-mixed?"),
    "a precision as a number": flag("trainer.precision", "64", "64; allowed: one of 32-true"),
    "a time": flag("trainer.max_time", "00:99", "'00:99'; allowed: text like DD:HH:MM:SS"),
    "clipping": flag("trainer.gradient_clip_algorithm", "nrom", "allowed: one of norm, value", "did you mean norm?"),
    "more workers than any machine has": flag("data.num_workers", "100000", "at most 256"),
    "a seed": flag("seed_everything", "99999999999", "at most 4294967295"),
    "no text": bad("--data.source.path", "nowhere", says=["nowhere does not exist"]),
    "text with a name too long": bad("--data.source.path", "x" * 5000, says=["File name too long"]),
}


CASES = {**COMMAND_LINE, **ARCHITECTURE, **TRAINING}


@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_named_in_one_line_and_leaves_nothing(name, meets):
    meets(CASES[name])


@pytest.mark.parametrize("count", [6, 12, 20])
def test_up_to_twenty_faults_are_named_in_five_lines(count, fit, write):
    write({"c.yaml": "trainer:\n" + "".join(f"  wrong_key_{i}: 3\n" for i in range(count))})
    status, lines = fit(*C)
    assert status == 2 and len(lines) == 5 and max(map(len, lines)) <= 300
    assert [i for i in range(count) if f"c.yaml:{i + 2}: trainer.wrong_key_{i}" not in "\n".join(lines)] == []


def test_long_places_are_cut_and_the_last_fault_stays():
    lines = request_lines(RequestError("\n".join(f"--{'x' * 200}{i}: wrong" for i in range(30))))
    assert len(lines) == 5 and max(map(len, lines)) <= 300 and lines[-1].endswith("29: wrong")


@pytest.mark.parametrize("text", ["", "data: [\n", "lit_small_lm: 99.0\n"])
def test_help_is_printed_whatever_the_configuration(text, fit, write, capsys):
    write({"c.yaml": text})
    assert main(["fit", *C, "--help"]) == 0
    assert "--trainer.max_steps" in capsys.readouterr().out


def test_variables_that_look_like_options_are_ignored(fit, monkeypatch):
    for name in ("PL_TRAINER_MAX_STEPS", "PL_FIT__TRAINER__MAX_STEPS", "FIT__TRAINER__MAX_STEPS", "PL_GLOBAL_SEED"):
        monkeypatch.setenv(name, "abc")
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    assert fit("--run_dir", "run")[0] == 0
    assert read(checkpoints_in(Path("run"))[0])["lit_small_lm"]["step"] == 4


def test_what_is_right_at_the_edge_works(fit, write):
    watch = [CALLBACKS, "EarlyStopping", CALLBACKS + ".monitor", "val/loss", CALLBACKS + "+=Timer"]
    write({"c.yaml": f"lit_small_lm: {__version__}\n"})
    constant = ["--schedule.warmup", "0", "--schedule.decay", "0", "--trainer.strategy", "auto"]
    assert fit(*C, *watch, *constant, "--run_dir", "run")[0] == 0
    first = (Path("run") / "config.yaml").read_text().splitlines()[0]
    assert first == f'lit_small_lm: "{__version__}"'
    rates = re.findall(r'"train/lr": ([^,}]+)', (Path("run") / "metrics.jsonl").read_text())
    assert len(rates) == 4 and set(map(float, rates)) == {1e-3}
    assert main(["fit", "-c", "run/config.yaml", "--run_dir", "again"]) == 0


def test_the_metrics_that_may_be_watched_are_those_that_are_measured():
    metric = DocumentNLL(documents=1)
    metric.update(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1).bool(), torch.ones(1, 1))
    assert tuple(metric.compute()) == METRICS


def test_a_pipe_is_not_waited_for(fit):
    os.mkfifo("pipe.yaml")
    status, lines = fit("-c", "pipe.yaml")
    assert status == 2 and "-c: 'pipe.yaml' is no regular file" in lines[-1]


OTHERS = {
    "validate": (["--run_dri", "x"], "--run_dri: no such option; known: ", "did you mean --run_dir?"),
    "test": (["--ckpt_pth", "x"], "did you mean --ckpt_path?"),
    "analyze": (["nowhere", "--rwos", "3"], "did you mean --rows?"),
    "prune": (["nowhere", "--kepe", "3"], "did you mean --keep?"),
    "plan": (["--vocab_sise", "3"], "did you mean --vocab_size?"),
    "prepare": (["--data.cache_dir", "f/below"], "data.cache_dir: f/below: ", "/f is a file"),
    "average": (["nowhere", ""], "OUT: it is empty; allowed: a path"),
    "import": (["~nobody_at_all", "out"], "HF_DIR: ~nobody_at_all: no user is called nobody_at_all"),
    "generate": (["/dev/zero"], "/dev/zero"),
    "export": (["nowhere", "out", "--to", "HF"], "--to: 'HF' is not a known choice; known: "),
}


@pytest.mark.parametrize("command", OTHERS)
def test_other_commands_name_the_fault_before_anything_is_loaded(command, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("f").write_text("x")
    argv, *says = OTHERS[command]
    refused([command, *argv], *says)


NAMED = (
    ["generate", "X"], ["average", "X", "out"], ["import", "X", "out"], ["export", "X", "out", "--to", "hf"],
    ["plan", "X"], ["test", "--ckpt_path", "X"], ["plugins", "--plugins", "X"], ["prepare", "--data.source.path", "X"],
    ["prepare", "--data.store", "X"], ["prepare", "--data.source", "HFDataset", "--data.source.path", "X"],
    ["test", "--run_dir", "X"],
)  # fmt: skip


@pytest.mark.parametrize("argv", NAMED, ids=lambda argv: " ".join(argv[:2]))
def test_a_line_break_in_a_name_breaks_no_line(argv, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(["a\nb\x1b[2J" if word == "X" else word for word in argv], r"a\nb\x1b[2J")


def test_a_prompt_that_is_not_utf_8_is_named_by_its_byte(two_layers, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xffc")))
    refused(["generate", str(two_layers), "--prompt", "-"], "--prompt: byte 2 of standard input is not UTF-8")


def test_text_without_a_word_is_not_scored(two_layers, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("blank.txt").write_text(" \n")
    refused(["test", "--run_dir", str(two_layers), "--data.source.path", "blank.txt"], "no text")


def test_devices_that_are_no_numbers_cannot_be_planned_for(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(["plan", "--model", "AutoregressiveLM", "--trainer.devices", "x"], "trainer.devices: 'x'; allowed: ")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("can't allocate memory: you tried to allocate 8000 bytes")]
)
def test_want_of_memory_is_no_traceback(error, capsys, monkeypatch):
    monkeypatch.setattr(told, "cause", False)
    complain(error, 0, wait=False)
    assert capsys.readouterr().err.startswith("error: not enough memory")


@pytest.mark.slow
def test_a_process_of_its_own_says_the_same(cli, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    for argv, says in (
        (["--data.source.path", name], "not UTF-8"),
        (["--trainer.max_stesp", "3"], "--trainer.max_steps?"),
    ):
        done = cli("fit", *argv)
        lines = done.stderr.splitlines()
        assert (done.rc, len(lines)) == (2, 1) and lines[0].startswith("error: ") and says in lines[0]
    assert not (tmp_path / "runs").exists()
