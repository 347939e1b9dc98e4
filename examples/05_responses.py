"""Write prompts and responses to fine-tune on: words, and how they look in capitals.

    python examples/05_responses.py [FILE] [ROWS]

writes FILE (pairs.jsonl) with a row a pair, which `lit-small-lm fit -c configs/finetune/responses_mini.yaml` trains on.
"""

import json
import random
import sys
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def main(file: str = "pairs.jsonl", rows: int = 4000) -> None:
    """Always the same pairs."""
    rng, lines = random.Random(0), []
    for _ in range(rows):
        word = "".join(rng.choices(LETTERS, k=rng.randint(3, 9)))
        lines.append(json.dumps({"prompt": f"{word} in capitals: ", "response": word.upper()}))
    Path(file).write_text("\n".join(lines) + "\n")
    print(f"{file}: {rows} pairs, such as {lines[0]}")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
