"""Fixtures of the test suite: a tiny corpus, and the command line as a user calls it."""

import os
import random
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

public = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("public_model.py"))))

WORDS = (
    "a across after all always among and apple ask at away before below bird boat book bread bring brown by call "
    "cat child cloud cold come corn dark day deep dog door down dream early earth evening every farm field fire "
    "fish flower follow for forest friend from garden give go gold grass green grow hand happy hear her hill his "
    "home horse house in into it keep kind know lake lamp land large late leaf learn letter light like listen "
    "little long look made many meadow milk moon morning mother mountain music near never night north of old on "
    "once open orange other over paper path people place plant play quiet rain read red river road round run sail "
    "salt sea season seed she ship sing sky sleep slow small snow soft song south spring star stone story street "
    "summer sun sweet table tall tell the their they thing through to tower town tree under valley village voice "
    "walk wall warm water wave way white wild wind window winter with wood word world write yellow young"
).split()


class Result(NamedTuple):
    """What a finished command left."""

    rc: int
    stdout: str
    stderr: str


def _sentence(rng: random.Random) -> str:
    words = rng.choices(WORDS, k=rng.randint(4, 14))
    return " ".join(words).capitalize() + rng.choice(".....?!")


def _story(rng: random.Random) -> str:
    paragraphs = [" ".join(_sentence(rng) for _ in range(rng.randint(3, 8))) for _ in range(rng.randint(6, 12))]
    return "\n\n".join(paragraphs) + "\n"


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory):
    """A folder of 40 text files, 2 to 6 kB each, of sentences drawn from a small vocabulary; always the same text.

    By their text two whole files fall into the validation split and two into the test split; the seed was chosen so.
    """
    folder, rng = tmp_path_factory.mktemp("text"), random.Random(34)
    for number in range(40):
        (folder / f"page_{number:03d}.txt").write_text(_story(rng), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def write_public():
    """`write_public(folder, **changes)` makes a folder of a tiny Llama with a tokenizer, as it would come from a hub.

    The network has three rows more than the tokenizer has ids; `changes` go into its config.json.
    """

    def make(folder, **changes) -> Path:
        folder.mkdir()
        return public.write(folder, changes)

    return make


@pytest.fixture
def public_folder(tmp_path, write_public):
    """`public_folder("name", ...)` makes one below the test's `tmp_path`."""
    return lambda name="public", **changes: write_public(tmp_path / name, **changes)


@pytest.fixture
def cli(tmp_path):
    """`cli("fit", ...)` runs `python -m lit_small_lm fit ...` in a process of its own -> (rc, stdout, stderr).

    It runs in the test's `tmp_path` unless `cwd` is given; `env` adds variables, `timeout` is in seconds.
    """

    def run(*args, cwd=None, env=None, stdin="", timeout=300) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "lit_small_lm", *map(str, args)],
            cwd=cwd or tmp_path,
            env={**os.environ, **(env or {})},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run
