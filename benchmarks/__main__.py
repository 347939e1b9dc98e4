"""All benchmarks but the study of depth, which takes hours: `python benchmarks [--quick]`, one JSON line each.

Names of files choose some: `python benchmarks training_step data`. What else is asked is passed on to each.
"""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
LONG = ("depth",)


def main() -> int:
    """Run them one after another, and stop at the first that fails."""
    names = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))
    chosen = [word for word in sys.argv[1:] if word in names] or [name for name in names if name not in LONG]
    passed = [word for word in sys.argv[1:] if word not in names]
    for name in chosen:
        done = subprocess.run([sys.executable, str(FOLDER / f"{name}.py"), *passed])
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
