"""What a planner says in words: a claim, where it comes from, and what speaks against it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Statement:
    """One claim with its source and the doubt that goes with it."""

    text: str
    source: str = ""
    """Who published it, with the address; empty: arithmetic of this planner."""
    doubt: str = ""
    """Why it may not hold here; empty: no particular one."""

    def __str__(self) -> str:
        return self.text + (f" [{self.source}]" if self.source else "") + (f"; but {self.doubt}" if self.doubt else "")
