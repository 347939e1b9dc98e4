"""The question that an objective asks of rows of text, as far as cost goes: how much is read, and what is scored.

The trick is to let the objective ask it, of rows of one document each with made-up ids: an objective that reads a row
twice, or scores some of its positions, is priced as it is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_small_lm.batch import Batch, Query, Specials
from lit_small_lm.plugin import Objective

END, PAD, MASK = range(3)


def ask(objective: Objective, rows: int, seq_len: int, vocab_size: int) -> Query:
    """The question about rows of one document each; what is random in it is always drawn the same."""
    length = seq_len + 1
    batch = Batch(
        tokens=torch.full((rows, length), min(MASK + 1, vocab_size - 1)),
        doc_ids=torch.arange(rows).unsqueeze(1).repeat(1, length),
        loss_mask=None,
        sample_ids=torch.arange(rows),
        slots=torch.arange(rows),
        specials=Specials(vocab_size=vocab_size, end=END, pad=PAD, mask=MASK),
    )
    return objective.query(batch, (0, 0))


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A dataclass (a Query, a Visibility) with every tensor in it changed."""
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    changed = {name: change(field) for name, field in fields.items() if isinstance(field, Tensor)}
    return dataclasses.replace(value, **changed)
