"""The kill storm on masked diffusion, whose noise has to come back as well."""

from collections.abc import Iterator
from pathlib import Path

import kills
from job import SIDES


def run(folder: Path, tries: int, sides=SIDES) -> Iterator[dict]:
    """`tries` kills on each side."""
    return kills.run(folder, tries, sides, "diffusion")
