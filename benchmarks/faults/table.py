"""The record of what was measured, and the table of `docs/reliability.md` that is written from it."""

import fcntl
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "faults.jsonl", ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
ORDER = (
    "kills", "diffusion", "saves", "damage", "stops", "shards", "twice", "clock", "nonfinite", "ranks", "processes",
    "disk", "endurance",
)  # fmt: skip
COLUMNS = ("tries", "lost", "doubled", "torn", "wrong")


def record(lines: list[dict]) -> None:
    """Keep lines, each in place of an earlier one of its fault and side, and write the table."""
    RESULTS.touch()
    with open(RESULTS, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        held = {(line["fault"], line["side"]): line for line in map(json.loads, file.read().splitlines())}
        held |= {(line["fault"], line["side"]): line for line in lines}
        file.seek(0)
        file.write("".join(json.dumps(line) + "\n" for line in held.values()))
        file.truncate()
        if PAGE.exists() and BEGIN in PAGE.read_text():
            write(list(held.values()))


def write(lines: list[dict]) -> None:
    """Put the table between its marks."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(lines)}\n{END}{rest.partition(END)[2]}")


def table(lines: list[dict]) -> str:
    """A row for each fault and side, and under it where the figures come from."""
    rows = [
        "| fault | | tries | lost | doubled | torn | wrong | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines = sorted(lines, key=lambda line: ORDER.index(line["storm"]))
    for fault in dict.fromkeys(line["fault"] for line in lines):
        for line in sorted((line for line in lines if line["fault"] == fault), key=lambda line: line["side"]):
            figures = [cell(line, column) for column in COLUMNS]
            rows.append(f"| {' | '.join([fault, line['side'], *figures, line.get('note', '')])} |")
    places = dict.fromkeys(
        f"{line['machine']}, Python {line['python']}, torch {line['torch']}, "
        f"lightning {line['lightning']}, {line['date']}"
        for line in lines
    )
    commands = dict.fromkeys(line["command"] for line in lines)
    return "\n".join([*rows, "", f"{'; '.join(places)}. {', '.join(f'`{command}`' for command in commands)}."])


def cell(line: dict, column: str) -> str:
    """A figure; of how many, where that is known; a dash where it was not asked."""
    value = line.get(column)
    of = f" of {line['of']:,}" if column == "wrong" and "of" in line else ""
    return "-" if value is None else f"{value:,}{of}"
