"""What the site takes from the program itself: {{ help COMMAND }}, {{ plugins KIND }}, {{ kinds }}, {{ commands }}, and
{{ configs FOLDER }}.

mkdocs calls `on_page_markdown` for every page (see `hooks` in mkdocs.yml).
"""

import contextlib
import io
import re
from functools import cache
from pathlib import Path

from lit_small_lm.__main__ import COMMANDS, main

CONFIGS = Path(__file__).parents[1] / "configs"


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page with what the program says put in."""
    if "{{ kinds }}" in markdown:
        markdown = markdown.replace("{{ kinds }}", _kinds())
    markdown = markdown.replace(
        "{{ commands }}", "\n\n".join(f"## {name}\n\n{{{{ help {name} }}}}" for name in COMMANDS)
    )
    markdown = re.sub(r"\{\{ help (\w+) \}\}", lambda found: _help(found[1]), markdown)
    markdown = re.sub(r"\{\{ configs (\w+) \}\}", lambda found: _configs(found[1]), markdown)
    return re.sub(r"\{\{ plugins (\w+) \}\}", lambda found: _table(found[1]), markdown)


def _help(command: str) -> str:
    """What `lit-small-lm COMMAND --help` prints, as a block."""
    _, what = COMMANDS[command]
    text = _printed(command, "--help")
    return f"`lit-small-lm {command}`: {what}.\n\n```text\n{text.strip()}\n```"


def _rows() -> list[list[str]]:
    """Kind, name, origin and first line of every plug-in."""
    return [re.split(r"\s{2,}", line, maxsplit=3) for line in _printed("plugins").splitlines()]


def _kinds() -> str:
    """Every kind with the names it has, as rows of a table."""
    names: dict[str, list[str]] = {}
    for kind, name, *_ in _rows():
        names.setdefault(kind, []).append(f"`{name}`")
    return "\n".join(f"| `{kind}` | {', '.join(found)} |" for kind, found in names.items())


def _table(kind: str) -> str:
    """The plug-ins of a kind that come with the package, as a table."""
    lines = [f"| `{name}` | {what} |" for row_kind, name, _, what in _rows() if row_kind == kind]
    return "\n".join(["| name | what it is |", "| --- | --- |", *lines])


def _configs(folder: str) -> str:
    """The files of a folder of configurations with what their headers say, as a table."""
    rows = ["| file | what it is |", "| --- | --- |"]
    for file in sorted((CONFIGS / folder).glob("*.yaml")):
        header = [line.removeprefix("# ") for line in file.read_text().splitlines() if line.startswith("# ")]
        rows.append(f"| `{file.name}` | {' '.join(header)} |")
    return "\n".join(rows)


@cache
def _printed(*argv: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(list(argv))
    return out.getvalue()
