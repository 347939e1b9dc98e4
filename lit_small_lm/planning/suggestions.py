"""Batch size and learning rate that a published sweep found best: a place to start from, not a setting.

The Step Law (arXiv 2503.04715): power laws in parameters and tokens, fitted on a grid of learning rates
and batch sizes.
"""

from dataclasses import dataclass

from lit_small_lm.planning.forecast import Bound
from lit_small_lm.planning.statement import Statement
from lit_small_lm.plugin import Size


@dataclass(frozen=True)
class Suggestion:
    """A learning rate and a batch size, with where they come from."""

    lr: float
    """Peak learning rate of AdamW."""
    batch_tokens: float
    """Tokens of one optimizer step."""
    statements: tuple[Statement, ...]


SOURCE = Statement(
    "lr = 1.79 N^-0.713 D^0.307 and a batch of 0.58 D^0.571 tokens, N without embeddings",
    "Li et al. 2025 (Step Law), arXiv 2503.04715",
    "found with AdamW, rows of 2048 tokens and a learning rate that ends at 1e-5; another optimizer, schedule or width "
    "scaling wants other values",
)
BOUNDED = Statement(
    "laws of batch size and learning rate are said to carry over to masked diffusion",
    "Ni et al. 2025 (Quokka), arXiv 2510.03280",
    "known from its abstract; arXiv 2512.10858 finds that the best batch grows almost like the tokens instead",
)


def step_law(size: Size, tokens: float, bound: Bound) -> Suggestion:
    """What the Step Law says for a network of `size` (the active parameters of a mixture of experts) and a run of so
    many tokens; for an objective with an upper bound with the doubt that goes with it."""
    n = size.non_embedding
    statements = (SOURCE,) if bound == "exact" else (SOURCE, BOUNDED)
    return Suggestion(1.79 * n**-0.713 * tokens**0.307, 0.58 * tokens**0.571, statements)
