"""`check` finds what is broken in a Spec that is no part of a network: the error names it and the contract."""

import dataclasses
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from lit_small_lm.context import Visibility
from lit_small_lm.data.tokenizer import ByteEncoder, Bytes
from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.plugin import (
    Document,
    Encoder,
    Frame,
    Optim,
    Query,
    Sampler,
    Source,
    SourcePart,
    setting,
)
from lit_small_lm.samplers.autoregressive import Autoregressive
from lit_small_lm.testing import check


# ---------------------------------------------------------------------------------------------------------------- Specs
class BrokenUndecorated(RMSNorm):
    """Lacks the decorator."""


@dataclass(frozen=True, kw_only=True)
class BrokenUndocumented(RMSNorm):
    pass


@dataclass(frozen=True, kw_only=True)
class BrokenField(RMSNorm):
    """A field without words."""

    gain: float = 1.0


@dataclass(frozen=True)
class BrokenPositional(RMSNorm):
    """A field that can be given by place."""

    gain: float = 1.0
    """Documented."""


@dataclass(frozen=True, kw_only=True)
class BrokenRange(RMSNorm):
    """A default outside its own range."""

    gain: float = setting(2.0, high=1)
    """Documented."""


@dataclass(frozen=True, kw_only=True)
class BrokenRecord(RMSNorm):
    """A field that is no plain data."""

    dtype: torch.dtype = torch.float32
    """Documented."""


@dataclass(frozen=True, kw_only=True)
class _BrokenPrivate(RMSNorm):
    """A name that is never known."""


# ------------------------------------------------------------------------------------------------ objectives, samplers
@dataclass(frozen=True, kw_only=True)
class BrokenNoise(NextToken):
    """Noise from the running generator."""

    def query(self, batch, key):
        query = super().query(batch, key)
        return dataclasses.replace(query, tokens=torch.where(torch.rand(query.tokens.shape) < 0.5, 3, query.tokens))


@dataclass(frozen=True, kw_only=True)
class BrokenSlots(NextToken):
    """Noise from key and place in this batch, not in the global one."""

    def query(self, batch, key):
        query = super().query(batch, key)
        drawn = torch.rand(query.tokens.shape, generator=torch.Generator().manual_seed(key[1]))
        return dataclasses.replace(query, tokens=torch.where(drawn < 0.5, 3, query.tokens))


@dataclass(frozen=True, kw_only=True)
class BrokenKind(NextToken):
    """Says causal, asks bidirectional."""

    def query(self, batch, key):
        query = super().query(batch, key)
        return Query(query.tokens, Visibility.rows(query.tokens, kind="bidirectional"), query.targets)


@dataclass(frozen=True, kw_only=True)
class BrokenBound(NextToken):
    """A bound nobody knows."""

    bound: ClassVar = "roughly"


@dataclass(frozen=True, kw_only=True)
class BrokenCount(Sampler):
    """Counts one evaluation for two."""

    def frames(self, net, prompt, n, key, specials, decoding):
        for frame in Autoregressive().frames(net, prompt, n, key, specials):
            yield Frame(frame.tokens, (frame.nfe + 1) // 2)


@dataclass(frozen=True, kw_only=True)
class BrokenKey(Sampler):
    """Does not use the key."""

    def frames(self, net, prompt, n, key, specials, decoding):
        yield from Autoregressive().frames(net, prompt, n, random.randrange(1 << 30), specials)


@dataclass(frozen=True, kw_only=True)
class BrokenNever(Sampler):
    """Draws what must not be drawn."""

    def frames(self, net, prompt, n, key, specials, decoding):
        yield from Autoregressive().frames(net, prompt, n, key, specials._replace(pad=15, mask=14))


# ------------------------------------------------------------------------------------------ optimizers, tokens, sources
@dataclass(frozen=True, kw_only=True)
class BrokenScale(Optim):
    """Groups without lr_scale."""

    def build(self, parameters, fused):
        return torch.optim.SGD([p.tensor for p in parameters], lr=self.lr)


@dataclass(frozen=True, kw_only=True)
class BrokenSkips(Optim):
    """Leaves out everything that does not decay."""

    def build(self, parameters, fused):
        return torch.optim.SGD([{"params": [p.tensor for p in parameters if p.decay], "lr_scale": 1.0}], lr=self.lr)


class LowerEncoder(ByteEncoder):
    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return super().encode([text.replace("\r\n", "\n") for text in texts])


@dataclass(frozen=True, kw_only=True)
class BrokenTokenizer(Bytes):
    """Loses carriage returns."""

    def learn(self, texts: Iterator[str]) -> Encoder:
        return LowerEncoder()

    def restore(self, record: Mapping[str, object]) -> Encoder:
        return LowerEncoder()


@dataclass(frozen=True, kw_only=True)
class BrokenSource(Source):
    """Holds nothing."""

    def parts(self):
        return []

    def read(self, part):
        return iter(())


@dataclass(frozen=True, kw_only=True)
class BrokenOrder(Source):
    """Another order at every reading."""

    def parts(self):
        return [SourcePart("only", 0, "constant")]

    def read(self, part):
        documents = [Document(str(i), "text") for i in range(50)]
        yield from random.sample(documents, len(documents))


@dataclass(frozen=True, kw_only=True)
class BrokenGiven(Source):
    """More is given than there is."""

    def parts(self):
        return [SourcePart("only", 0, "constant")]

    def read(self, part):
        yield Document("one", "text", ((1, 9),))


@pytest.mark.parametrize(
    ("spec", "contract"),
    [
        (BrokenUndecorated(), "is a frozen dataclass"),
        (BrokenUndocumented(), "is documented: the class has no docstring"),
        (BrokenField(), "is documented: no string literal after: gain"),
        (BrokenPositional(), "is a frozen dataclass: fields are not keyword-only: gain"),
        (BrokenRange(), "settings are in range: gain: 2.0; allowed: at most 1"),
        (BrokenRecord(), "survives a round trip"),
        (_BrokenPrivate(), "is known by short name"),
        (BrokenNoise(), "asks a well formed question: two queries"),
        (BrokenSlots(), "gives a row the same noise in any batch"),
        (BrokenKind(), "asks a well formed question: the query is bidirectional"),
        (BrokenBound(), "can be trained on"),
        (BrokenCount(), "extends the prompt and counts: 1 evaluations counted, 2 made"),
        (BrokenKey(), "draws the same text from the same key"),
        (BrokenNever(), "extends the prompt and counts: padding or mask"),
        (BrokenScale(), "steps every parameter once: a group carries no lr_scale"),
        (BrokenSkips(), "steps every parameter once: parameters are missing"),
        (BrokenTokenizer(), "turns text to ids and back"),
        (BrokenSource(), "reads the same documents every time: it has no parts"),
        (
            BrokenGiven(),
            "reads the same documents every time: what is given of one, ((1, 9),), does not lie in order in its text",
        ),
        (BrokenOrder(), "reads the same documents every time: two readings of part only differ"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_broken_spec_is_named_with_its_contract(spec, contract):
    with pytest.raises(AssertionError, match=f"^{type(spec).__name__}: {re.escape(contract)}"):
        check(spec)
