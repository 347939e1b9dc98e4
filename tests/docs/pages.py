"""Runs a page of the documentation as a reader would type it: `python pages.py PAGE`, in an empty folder of its own.

Blocks run in order. ```` ```python title="x.py" ```` and ```` ```yaml title="x.yaml" ```` are written to that file,
other Python is executed, and of a console block the `lit-small-lm` lines are run, small and short. A block after
`<!-- no-test -->` is left alone.
"""

import os
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

SMALL = {
    "--data.tokenizer": "Bytes", "--data.seq_len": "16", "--data.batch_size": "4", "--data.source.path": "my_folder",
    "--trainer.max_steps": "2", "--trainer.limit_val_batches": "1", "--trainer.accelerator": "cpu",
    "--checkpoints.every_n_steps": "1", "--model.shape.dim": "16", "--model.shape.n_layers": "1",
}  # fmt: skip
"""Given to every `fit` that starts afresh, unless the command says something of it."""
STEPS = {"step=00000560": "step=00000002", "960": "4", "800": "3", "160": "1"}
"""Steps as the pages write them, and what is run instead."""
FENCE = re.compile(
    r"(<!-- no-test -->\n+)?^```(\w+)(?: title=\"([^\"]+)\")?[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE
)


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    file: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Every block of a page that is to be run."""
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(language, file or "", text) for skip, language, file, text in (m.groups() for m in found) if not skip]


def commands(text: str) -> list[list[str]]:
    """The arguments of every `lit-small-lm` line of a console block; a backslash joins lines."""
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("lit-small-lm ")]


def shortened(argv: list[str]) -> list[str]:
    """The same command for a few steps of a tiny model."""
    for long, short in STEPS.items():
        argv = [text.replace(long, short) for text in argv]
    if "--trainer.devices" in argv:  # several processes have tests of their own
        at = argv.index("--trainer.devices")
        argv = [word for i, word in enumerate(argv) if i not in (at, at + 1) and "--trainer.strategy" not in word]
        argv = [word for word in argv if word not in ("ddp", "FSDP2")]
    if argv[0] != "fit" or {"--resume", "--branch_from"} & set(argv):
        return argv
    own_source = any(word.startswith("--data.source") or word == "mix.yaml" for word in argv)
    given = {*argv, "--data.source.path"} if own_source else set(argv)
    if "BudgetShape" in argv:  # it has no width of its own
        given.add("--model.shape.dim")
    rest = [word for key, value in SMALL.items() if key not in given for word in (key, value)]
    return [*argv, *rest]


def run(page: Path) -> int:
    """Run every block; returns how many things were run."""
    from lit_small_lm.__main__ import main

    count = 0
    for number, block in enumerate(blocks(page)):
        if block.file:
            Path(block.file).write_text(block.text)
        elif block.language == "python":
            file = Path(f"block_{number}.py")
            file.write_text(block.text)
            exec(compile(block.text, str(file.absolute()), "exec"), {"__name__": file.stem})  # noqa: S102
            count += 1
        for argv in commands(block.text) if block.language == "console" else []:
            status = _status(main, shortened(argv))
            if status not in (0, None):
                raise SystemExit(f"{page.name}: exit status {status}: lit-small-lm {shlex.join(argv)}")
            count += 1
    return count


def _status(main, argv: list[str]) -> int | str | None:
    print(f"$ lit-small-lm {shlex.join(argv)}", flush=True)
    try:
        return main(argv)
    except SystemExit as done:  # --print_config and --help leave through argparse
        return done.code


def corpus(text: Path) -> None:
    """The files that pages speak of, in the working folder: `text` as a folder, and as tables of two other kinds."""
    import json

    import pyarrow
    import pyarrow.parquet

    Path("my_folder").symlink_to(text)
    Path("configs").symlink_to(Path(__file__).parents[2] / "configs")
    rows = [
        {"text": page, "source": file.name}
        for file in sorted(text.iterdir())
        for page in file.read_text().split("\n\n")
    ]
    Path("my_parquet").mkdir()
    for number, half in enumerate((rows[::2], rows[1::2])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(half), f"my_parquet/part-{number}.parquet")
    Path("my_texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    corpus(Path(sys.argv[2]))
    print(f"{run(Path(sys.argv[1]))} things run")
