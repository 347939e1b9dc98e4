"""What masked and block diffusion share: masked tokens are restored, and the network is asked about them alone.

The mask has no probability as an answer, and what is not masked costs nothing and has no gradient (the zero-mask and
carry-over rules of MDLM, arXiv 2406.07524).
"""

import abc
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from lit_small_lm.context import Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.objectives.masking import Estimator, Masks, Texts, draw, lay_out
from lit_small_lm.objectives.noise import LinearNoise
from lit_small_lm.plugin import Batch, Noise, Objective, Query, Specials, setting

LogitsAt = Literal["own", "before"]
Average = Literal["tokens", "sequences", "positions"]


class Estimate(NamedTuple):
    """A question whose answers are an estimate of the bound, and what they are about."""

    query: Query
    columns: Tensor
    """(M,) the place of each target among the B*W of the texts; of an end that fills a document up, that of its end."""
    texts: Texts


@dataclass(frozen=True, kw_only=True)
class Denoising(Objective):
    """Restores masked tokens from those that are not; the loss is an upper bound of the negative log-likelihood."""

    bound: ClassVar = "upper"

    noise: Noise = LinearNoise()
    """The schedule: how much is masked."""
    estimator: Estimator = "stratified"
    """How masks are drawn: "stratified" spreads times evenly over the rows of a step and the parts of a row,
    "independent" draws each by itself, "count" masks exactly k tokens of each part (and needs no schedule),
    "complementary" asks twice about each row, the second time about what was not masked the first time."""
    average: Average = "tokens"
    """What the loss is a mean over: tokens that may be masked, sequences (each divided by its own number of them), or
    all positions of the rows (as in LLaDA's pre-training)."""
    logits_at: LogitsAt = "own"
    """Which position predicts a token: its own, or the one before it, as in a network trained on next tokens."""
    filled_to: int | None = setting(None, low=1, unit="positions")
    """Behind each document's end more ends, masked and restored as it is, fill it up to a multiple of so many positions
    (rounded up to whole blocks): where a text ends has then to be found out, as it has while text is drawn; null: none,
    and how many masks there are says how long a text is. For prompts and responses."""

    @abc.abstractmethod
    def parts(self) -> int | None:
        """Positions of a unit that has a time of its own; None: a document is one."""

    @abc.abstractmethod
    def seen(self, texts: Texts, noisy: Tensor) -> tuple[Tensor, Visibility]:
        """What the network reads of texts and their noisy tokens (B, W), and under which visibility."""

    def in_blocks(self, size: int) -> "Denoising":
        """The same objective with blocks of another size. Raises RequestError if it has no blocks."""
        raise RequestError(
            f"model.objective: {type(self).__name__} has no blocks; allowed: BlockDiffusion or JointDiffusion"
        )

    def texts(self, batch: Batch) -> Texts:
        """The rows of a batch, laid out and filled up."""
        return lay_out(batch, self.multiple() if self.filled_to else None)

    def multiple(self) -> int:
        """Positions whose multiple a document that ends is filled up to; 1: it is not."""
        size, filled_to = self.parts() or 1, self.filled_to
        return 1 if filled_to is None else -(-filled_to // size) * size

    def query(self, batch: Batch, key: tuple[int, int]) -> Query:
        texts = self.texts(batch)
        views = draw(texts, key, self.noise, self.estimator, self.parts())
        query, _ = self.ask(texts, views, batch.specials)
        return self._averaged(query, texts, len(views), batch.tokens.shape[1] - 1)

    def beside(self) -> Objective | None:
        """An objective that its networks are trained on as well, and whose likelihood is exact; None: there is none."""
        return None

    def measured(self, batch: Batch, key: tuple[int, int]) -> Estimate:
        """The question whose answers estimate the bound with the least scatter, whatever the training loss is."""
        texts = self.texts(batch)
        query, columns = self.ask(texts, draw(texts, key, self.noise, "count", self.parts()), batch.specials)
        if texts.ends is not None:
            width = texts.tokens.shape[1]
            columns = columns // width * width + texts.ends.flatten()[columns]
        return Estimate(query, columns, texts)

    def ask(self, texts: Texts, views: Sequence[Masks], specials: Specials) -> tuple[Query, Tensor]:
        """The question about all masked tokens of some views of texts, view by view for each row, and the place (M,) of
        each among the B*W of the texts."""
        mask = mask_of(specials, type(self).__name__)
        texts = _repeated(texts, len(views))
        masked, weights = (torch.stack(part, 1).flatten(0, 1) for part in zip(*views, strict=True))  # (B views, W)
        tokens, visibility = self.seen(texts, texts.tokens.masked_fill(masked, mask))
        rows, columns = masked.nonzero(as_tuple=True)  # (M,) each
        query = Query(
            tokens,
            visibility,
            targets=texts.tokens[rows, columns],
            weights=weights[rows, columns],
            count=texts.counted.sum(1),
            scored=rows * tokens.shape[1] + self.source(texts, tokens.shape[1])[rows, columns],
            impossible=(mask,),
        )
        return query, rows // len(views) * texts.tokens.shape[1] + columns

    def source(self, texts: Texts, width: int) -> Tensor:
        """(B, W) which of the `width` columns that the network reads predicts each token.

        Where that is the position before, the first token of a block is predicted by the last clean one before it, as
        it is while decoding.
        """
        column = torch.arange(texts.tokens.shape[1], device=texts.tokens.device).expand(texts.tokens.shape)
        if self.logits_at == "own":
            return column
        size, clean = self.parts(), width - texts.tokens.shape[1]
        if not clean:
            return column - 1
        first = texts.visibility.positions % size == 0
        return torch.where(first, column + clean, column) - 1

    def _averaged(self, query: Query, texts: Texts, views: int, positions: int) -> Query:
        """The question with the loss averaged as asked."""
        if self.average == "tokens":
            return query
        if self.average == "positions":
            return dataclasses.replace(query, count=torch.full_like(query.count, positions))
        row = query.scored // query.tokens.shape[1]
        return dataclasses.replace(query, weights=query.weights / query.count[row], count=(query.count > 0).long())


def mask_of(specials: Specials, asking: str) -> int:
    """The id of the mask. Raises RequestError if there is none of its own."""
    if specials.mask is None:
        raise RequestError(
            f"model.objective: {asking} masks tokens, and the tokenizer has no mask token; allowed: a tokenizer of "
            "this package, or a public model imported with --new_rows"
        )
    others = {name: index for name, index in specials.ids().items() if index == specials.mask and name != "mask"}
    if others:
        raise RequestError(f"data.tokenizer: its mask is its {next(iter(others))} token; allowed: an id of its own")
    return specials.mask


def _repeated(texts: Texts, times: int) -> Texts:
    """Every row several times, one after the other."""
    if times == 1:
        return texts
    tokens, open_, slots = (part.repeat_interleave(times, 0) for part in (texts.tokens, texts.open, texts.slots))
    docs, ends = texts.visibility.doc_ids.repeat_interleave(times, 0), texts.ends
    ends = None if ends is None else ends.repeat_interleave(times, 0)
    return Texts(tokens, Visibility.rows(tokens, docs, "bidirectional"), open_, slots, ends)
