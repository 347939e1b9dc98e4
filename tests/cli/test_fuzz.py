"""Whatever is typed, written or found in a file: it is taken, or refused in a few lines that a terminal can show.

The suite tries some hundred; `make fuzz` tries ten thousand texts, requests, and files of every kind together
(`LIT_SMALL_LM_EXAMPLES`).
"""

import contextlib
import io
import os
import random
import resource
import runpy
import shutil
import string
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from yaml import Node

from lit_small_lm.__main__ import main
from lit_small_lm.cli import yaml_tree
from lit_small_lm.cli.completion import words_of
from lit_small_lm.cli.lit import roots
from lit_small_lm.cli.request import check_request
from lit_small_lm.cli.yaml_tree import BadYAML
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.data.store import TokenStore, prepare
from lit_small_lm.data.tokenizer import Bytes
from lit_small_lm.discovery import discover
from lit_small_lm.errors import RequestError, RunError, request_lines

broken = runpy.run_path(str(Path(__file__).with_name("broken_files.py")))

PIECES = [
    "1", "-1", "0.5", "nan", ".inf", "1e999", "9" * 400, "true", "null", "~", "", "x", "{", "[1,2]", "{a: b}", "- a",
    "{class_path: AdamW, init_args: {lr: 1e-4}}", "{class_path: [x]}", "{init_args: 3}", "{<<: {class_path: AdamW}}",
    "[[EarlyStopping]]", "[EarlyStopping, 3, null]", "AdamW", "a.yaml", "*a", "&", "!!python/x y", "!!int x",
    "\x1b[31m", "{a: 1, a: 2}", "{[a]: b}", "? a", "0x1f", "1:30", "2024-01-01", "{config: x}", "{lit_small_lm: 3}",
    "a: b", "é" * 400,
]  # fmt: skip


EXAMPLES = int(os.environ.get("LIT_SMALL_LM_EXAMPLES", 0))
"""Of a test, or of several that share them; 0: as many as it names itself."""


def examples(count: int, share: int = 1) -> settings:
    """How often a test runs."""
    wanted = -(-EXAMPLES // share) or count
    return settings(max_examples=wanted, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@examples(300)
@given(st.text(alphabet=string.printable + "é\x00\u2028\x1b", max_size=60))
@example("a: &a [*a]")
@example("? {a: b}\n: c")
@example("[" * 300)
@example("a: !!binary x")
@example("=: 3")
def test_any_text_is_yaml_or_refused(text):
    try:
        node = yaml_tree.compose(text)
    except BadYAML as error:
        assert error.problems
        return
    assert isinstance(node, Node)
    yaml_tree.data(node)


@pytest.fixture(scope="module")
def flags() -> list[str]:
    discover()
    return [word.name for word in words_of(roots())]


@examples(300)
@given(seed=st.integers(0, 2**32), pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=4))
@example(seed=0, pieces=["9" * 400])
def test_any_request_is_taken_or_refused_in_five_lines(flags, seed, pieces):
    draw, argv = random.Random(seed), []
    for piece in pieces:
        name = draw.choice(flags)
        at = draw.randrange(2, len(name))
        name = draw.choice([name, name, name[:at] + name[at + 1 :], name + "+", name + ".class_path", name + ".x"])
        argv += draw.choice([[f"{name}={piece}"], [name, piece], [piece]])
    try:
        check_request(["--model", "AutoregressiveLM", *argv], roots())
    except RequestError as error:
        lines = request_lines(error)
        assert len(lines) <= 5 and max(map(len, lines)) <= 300 and all(line.isprintable() for line in lines)


# --------------------------------------------------------------------------------------------------------------- files
SECONDS, MEBIBYTES = 60, 2048
"""What one example may take, and by how much all of them together may grow this process."""
CONFIG = """\
trainer: {max_steps: 100, accumulate_grad_batches: 2, gradient_clip_val: 1.0, precision: 32-true}
model:
  class_path: AutoregressiveLM
  init_args:
    shape: {class_path: FixedShape, init_args: {dim: 32, n_layers: 2, n_heads: 4, n_kv_heads: 2, hidden: 64}}
    backbone:
      norm: {class_path: PreNorm, init_args: {norm: {class_path: RMSNorm, init_args: {eps: 1.0e-5}}}}
      layer: {mixer: {class_path: Attention, init_args: {window: 8}}, canon_at: AC}
      more_layers: {conv: {mixer: ShortConv}}
      pattern: [layer, conv]
data: {tokenizer: Bytes, seq_len: 32, batch_size: 8, source: {class_path: TextFiles, init_args: {path: data/a.txt}}}
optim: {class_path: AdamW, init_args: {lr: 1.0e-3, beta2: 0.95, weight_decay: 0.1}}
schedule: {warmup: 0.1, decay: 10}
ema_decay: 0.99
"""


@pytest.fixture(scope="module")
def sound(tmp_path_factory, two_layers, write_public):
    """A folder of files as they should be: a configuration, a run, a public model, a token store, data."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "c.yaml").write_text(CONFIG)
    shutil.copytree(two_layers, folder / "run")
    for manifest in (folder / "run" / "checkpoints").glob("*.json"):
        manifest.unlink()  # what does not fit its digest is read no further; this is about what is read
    write_public(folder / "public")
    broken["write_data"](folder / "data")
    store = prepare(TextFiles(path=str(folder / "data")), Bytes().learn(iter(())), folder / "cache", None, Bytes())
    shutil.copytree(store.folder, folder / "store")
    shutil.rmtree(folder / "cache")
    return folder


def checked(argv: list[str]) -> int:
    """Run a command and hold it against what every one has to keep: words, lines, files, time."""
    before, started, said = tree(), time.monotonic(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status = main(argv)
    lines = said.getvalue().splitlines()
    assert "Traceback" not in said.getvalue() and status in (0, 1, 2), (argv, said.getvalue())
    assert status == 0 or (lines[-1].startswith("error: ") and len(lines[-1]) <= 300), lines
    assert status != 2 or (len(lines) <= 5 and all(line.isprintable() for line in lines)), lines
    assert tree() == before, set(tree().items()) ^ set(before.items())
    assert time.monotonic() - started < SECONDS
    return status


def tree() -> dict[str, int]:
    """Everything below the working directory but the place for results."""
    return {str(path): path.lstat().st_mtime_ns for path in Path().rglob("*") if path.parts[0] != "out"}


PLAN_STORE = ["plan", "--model", "AutoregressiveLM", "--data.store", "store"]
PUBLIC = ["import", "public", "out/public"]
SUBJECTS: dict[str, tuple[str, str, list[str]]] = {
    "configuration, values": ("c.yaml", "break_config", ["plan", "c.yaml"]),
    "configuration, bytes": ("c.yaml", "break_bytes", ["plan", "c.yaml"]),
    "configuration, of fit": ("c.yaml", "break_config", ["prepare", "-c", "c.yaml", "--data.cache_dir", "out/cache"]),
    "checkpoint, values": ("run/checkpoints/*.ckpt", "break_checkpoint", ["generate", "run", "--max_new_tokens", "2"]),
    "checkpoint, bytes": ("run/checkpoints/*.ckpt", "break_bytes", ["generate", "run", "--max_new_tokens", "2"]),
    "run, values": ("run/*.json", "break_json", ["plan", "run"]),
    "run, bytes": ("run/*.y*ml", "break_bytes", ["plan", "run"]),
    "config.json, values": ("public/config.json", "break_json", PUBLIC),
    "config.json, bytes": ("public/config.json", "break_bytes", PUBLIC),
    "tokenizer.json, values": ("public/tokenizer.json", "break_json", PUBLIC),
    "tokenizer.json, bytes": ("public/tokenizer.json", "break_bytes", PUBLIC),
    "safetensors, values": ("public/*.safetensors", "break_safetensors", PUBLIC),
    "safetensors, bytes": ("public/*.safetensors", "break_bytes", PUBLIC),
    "public model, planned": ("public/config.json", "break_json", ["plan", "public"]),
    "token store, values": ("store/*.json", "break_json", PLAN_STORE),
    "token store, bytes": ("store/*", "break_bytes", PLAN_STORE),
    "data, bytes": ("data/*", "break_bytes", []),
    "parquet, values": ("data/c.parquet", "break_parquet", []),
}  # fmt: skip
"""What is broken, how, and the command that reads it."""


@pytest.mark.parametrize("name", SUBJECTS)
def test_any_file_is_read_or_refused_in_a_line(name, sound, tmp_path, monkeypatch):
    pattern, way, command = SUBJECTS[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_SMALL_LM_CACHE", str(tmp_path / "out" / "cache"))

    def laid_out() -> list[Path]:
        """The working directory as it should be; returns what may be broken in it."""
        for path in Path().iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for whole in {sound / pattern.split("/")[0], sound / "data"}:
            shutil.copytree(whole, whole.name) if whole.is_dir() else shutil.copy(whole, whole.name)
        Path("out").mkdir()
        return sorted(path for path in Path().glob(pattern) if path.is_file())

    def read(file: Path) -> int:
        found = checked(command or ["prepare", "--data.tokenizer", "Bytes", *source_of(file)])
        if pattern.startswith("store"):
            read_store()
        return found

    @examples(3, len(SUBJECTS))
    @given(seed=st.integers(0, 2**64))
    def one(seed: int) -> None:
        draw = random.Random(seed)
        file = draw.choice(laid_out())
        broken[way](file, draw)
        read(file)

    assert read(laid_out()[0]) == 0, "what is not broken has to be read"
    one()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEBIBYTES * 1024


def source_of(file: Path) -> list[str]:
    if file.suffix == ".txt":
        return ["--data.source", "TextFiles", "--data.source.path", str(file)]
    return ["--data.source", "HFDataset", "--data.source.path", str(file)]


def read_store() -> None:
    """Whatever a store's records say, its tokens are read whole or refused."""
    try:
        found = TokenStore.open(Path("store"))
        for split in ("train", "validation", "test"):
            tokens = found.split(split)
            tokens.read(0, tokens.length)
        found.verify()
    except (RequestError, RunError) as error:
        assert all(map(str.isprintable, request_lines(error)))
