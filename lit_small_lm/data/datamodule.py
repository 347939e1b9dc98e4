"""The data module: documents in, batches of packed rows out."""

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, Trainer

from lit_small_lm.data import corpus
from lit_small_lm.data.cache import default_cache
from lit_small_lm.data.corpus import HELD_OUT, Corpus
from lit_small_lm.data.loader import BatchLoader, PreparedFeed, Rows
from lit_small_lm.data.mixture import Interleaving, naming
from lit_small_lm.data.packing import Packed, Packing, Stream, left_out, pack, sizes_of
from lit_small_lm.data.plan import EvalPlan, Pace, RowOrder, Shares, TrainPlan, Warmup
from lit_small_lm.data.progress import Tell
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.data.splits import SPLITS
from lit_small_lm.data.store import TokenStore
from lit_small_lm.data.streaming import Reader, StreamedFeed
from lit_small_lm.data.tokenizer import BPE
from lit_small_lm.errors import RequestError, path_of
from lit_small_lm.plugin import Batch, Encoder, Source, Split, Tokenizer
from lit_small_lm.ranks import data_rank
from lit_small_lm.spec import check_settings, matches, type_text

Reading = Literal["prepared", "streamed"]
BATCH_SIZE = 16


class TokenData(LightningDataModule):
    """Tokenises a source and hands out rows of packed documents.

    Args:
        source: where documents come from.
        tokenizer: how text becomes ids; trained on the training documents where it has to be.
        seq_len: positions of a row.
        batch_size: rows of one optimizer step, over all processes and accumulated batches; null: 16, or what
            batch_tokens asks for.
        batch_tokens: instead of batch_size, the tokens of one optimizer step: a multiple of seq_len.
        micro_batch_size: rows that one process handles at once; trainer.accumulate_grad_batches follows from it, and
            trainer.val_check_interval counts optimizer steps all the same.
        packing: concatenate: documents one after another, cut where rows end; best_fit: a document that fits into a
            row is never cut (arXiv 2404.10830). Prompts with responses are never cut in either.
        warmup: smaller batches or shorter rows at the beginning.
        reading: prepared: everything is tokenised before training; streamed: while training goes on.
        store: the folder of a token store to train from, without its source.
        num_workers: loader processes; 0 loads in the training process, which is enough for prepared tokens.
        cache_dir: where token stores are kept; null: $LIT_SMALL_LM_CACHE or the user's cache folder.

    Raises:
        RequestError: a value out of range, a corpus that cannot be read, or one smaller than a batch.
    """

    def __init__(
        self,
        source: Source = TextFiles(),
        tokenizer: Tokenizer = BPE(),
        seq_len: int = 256,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        micro_batch_size: int | None = None,
        packing: Packing = "concatenate",
        warmup: Warmup = Warmup(),
        reading: Reading = "prepared",
        store: str | None = None,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        _check_values(seq_len, batch_size, batch_tokens, micro_batch_size, num_workers, packing, reading)
        specs = {"source": source, "tokenizer": tokenizer, "warmup": warmup}
        problems = [line for name, spec in specs.items() for line in check_settings(spec, f"data.{name}")]
        if problems:
            raise RequestError("; ".join(problems))
        if store is not None and reading == "streamed":
            raise RequestError("data.store: given with data.reading streamed; a store is prepared: give one of the two")
        self.source, self.tokenizer, self.reading, self.store = source, tokenizer, reading, store
        self.pace = Pace(rows_of_a_step(seq_len, batch_size, batch_tokens), seq_len, warmup)
        """Rows and tokens of every step."""
        self.seq_len, self.packing, self.micro_batch_size = seq_len, packing, micro_batch_size
        self.num_workers = num_workers
        self.cache = path_of(cache_dir) if cache_dir else default_cache()
        self.seed = 0
        """Seed of the order of training rows; the command line sets it from seed_everything."""
        self.max_tokens: int | None = None
        """Training tokens after which a run ends, instead of the trainer's max_steps or max_epochs."""
        self.encoder_record: dict[str, object] | None = None
        """The record of the tokenizer to use instead of learning one: that of the checkpoint training goes on from."""
        self.left_out: tuple[tuple[int, int], ...] = ()
        """(first row, how many) of each stretch of the training order that was left out; see `leave_out`."""
        self.tell: Tell | None = None
        """Told how far a preparation is."""
        self._corpus: Corpus | None = None
        self._rows: dict[Split, Rows] = {}

    @property
    def batch_size(self) -> int:
        """Rows of one optimizer step, after a warm-up."""
        return self.pace.batch_size

    # ------------------------------------------------------------------------------------------------------- opening
    def prepare_data(self) -> None:
        """Tokenise, in one process of each machine."""
        self._open()

    def setup(self, stage: str) -> None:
        self._corpus, self._rows = self._open(), {}
        if stage == "fit":
            self._accumulate()
            self._check_size()
            self._check_warmup()
            self._count_in_steps()
            self._shares()

    def _open(self) -> Corpus:
        if self.store is not None:
            return self._of_store(TokenStore.open(path_of(self.store)))
        encoder = corpus.encoder_of(self.source, self.tokenizer, self.cache, self.encoder_record)
        if self.reading == "streamed":
            return corpus.held_out(self.source, encoder, self.cache)
        return corpus.prepared(self.source, self.tokenizer, encoder, self.cache, self.tell)

    def _of_store(self, store: TokenStore) -> Corpus:
        """A store's own tokenizer is taken unless another one is asked for."""
        own = corpus.tokenizer_of(store)
        fixed = self.tokenizer != BPE() or self.encoder_record is not None
        corpus.check_tokenizer(store, self.tokenizer if fixed else own, self.encoder_record)
        self.tokenizer = own
        return corpus.of_store(store, self.source)

    def _accumulate(self) -> None:
        """Let the trainer accumulate as many batches as `micro_batch_size` asks for."""
        size, processes = self.micro_batch_size, data_rank(self.trainer).size
        if size is None:
            return
        if self.batch_size % (size * processes):
            raise RequestError(
                f"data.micro_batch_size: {size} rows x {processes} processes do not divide the {self.batch_size} rows "
                f"of a step; allowed: divisors of {self.batch_size // processes}"
            )
        accumulate, given = self.batch_size // (size * processes), self.trainer.accumulate_grad_batches
        if given not in (1, accumulate):
            raise RequestError(
                f"data.micro_batch_size: {size} beside trainer.accumulate_grad_batches {given}; give one of the two"
            )
        self.trainer.accumulate_grad_batches = accumulate
        if given == 1 and isinstance(self.trainer.val_check_interval, int):
            self.trainer.val_check_interval *= accumulate  # Lightning counts batches; it goes on meaning steps

    def _check_size(self) -> None:
        if self.reading == "streamed":
            return
        rows = self.rows("train")
        for part, stream, packed in zip(
            self.corpus.components, self.corpus.streams("train"), rows.components, strict=True
        ):
            if not len(packed):
                with naming(part.component.name):
                    raise RequestError(
                        f"data.source: {stream.length} training tokens; one row of data.seq_len {self.seq_len} needs "
                        f"{self.seq_len + 1}"
                    )
        if len(rows) < self.batch_size:
            found = sum(stream.length for stream in self.corpus.streams("train"))
            raise RequestError(
                f"data: {found} training tokens; one batch of {self.batch_size} rows (data.batch_size) x data.seq_len "
                f"{self.seq_len} needs {self.batch_size * self.seq_len + 1}"
            )

    def _check_warmup(self) -> None:
        steps = self.pace.warmup.seq_len
        if steps and self.reading == "prepared" and any(len(s.given) for s in self.corpus.streams("train")):
            raise RequestError(
                f"data.warmup.seq_len: {steps}; shorter rows would cut prompts from their responses; allowed: 0"
            )

    def _count_in_steps(self) -> None:
        """Turn a run given in epochs or tokens into one given in steps, so that schedules know its length.

        To Lightning every run is then one epoch, which keeps its epoch boundaries out of an exact resume.
        """
        loop = self.trainer.fit_loop
        if self.max_tokens is not None:
            loop.epoch_loop.max_steps = self.pace.steps_of_tokens(self.max_tokens)
        elif self.trainer.max_steps < 0:
            loop.epoch_loop.max_steps = self._steps_of_epochs(self.trainer)
        loop.max_epochs = -1

    def _steps_of_epochs(self, trainer: Trainer) -> int:
        if trainer.max_epochs is None or trainer.max_epochs < 0:
            raise RequestError(
                "trainer.max_steps: not given; a run needs trainer.max_steps, trainer.max_epochs or max_tokens"
            )
        if self.reading == "streamed":
            raise RequestError(
                "trainer.max_epochs: with data.reading streamed nobody knows how long an epoch is; give "
                "trainer.max_steps or max_tokens"
            )
        return self.pace.steps_within(trainer.max_epochs * len(self.rows("train")))

    # ------------------------------------------------------------------------------------------------------- content
    @property
    def corpus(self) -> Corpus:
        """The documents as tokens. Raises RequestError before `setup`."""
        if self._corpus is None:
            raise RequestError("data: call setup() before asking for tokens")
        return self._corpus

    @property
    def encoder(self) -> Encoder:
        """The tokenizer in use; owns `vocab_size` and the special ids."""
        return self.corpus.encoder

    def documents(self, split: Split) -> dict[str, range]:
        """The `doc_ids` of each component of a split; a plain source is one component without a name."""
        return self.corpus.documents(split)

    def fingerprint(self) -> str:
        """A digest of the text."""
        return self.source.fingerprint() if self.store is None else self.corpus.components[0].fingerprint

    def rows(self, split: Split) -> Rows:
        """The rows of a split. Training takes whole ones, packed as asked; evaluation all, concatenated."""
        if split not in self._rows:
            documents = self.corpus.documents(split).values()
            packed = [
                self._packed(split, stream, numbers.start)
                for stream, numbers in zip(self.corpus.streams(split), documents, strict=True)
            ]
            self._rows[split] = Rows(packed, self.encoder.specials)
        return self._rows[split]

    def _packed(self, split: Split, stream: Stream, first_document: int) -> Packed:
        if split == "train":
            packed = pack(stream, self.seq_len, self.packing, first_document)
        else:
            packed = pack(stream, self.seq_len, "concatenate", first_document, rest="pad")
        if not len(packed) and left_out(stream, self.seq_len):
            raise RequestError(
                f"data.seq_len: {self.seq_len}; no {split} document fits into a row whole, prompt and response; the "
                f"shortest needs {sizes_of(stream).min()}"
            )
        return packed

    def notes(self) -> Sequence[str]:
        """What a user should know of the data, a line each."""
        lines = []
        for part in self.corpus.components:
            name = f"{part.component.name}: " if part.component.name else ""
            for split, count in part.summary.items():
                given = f" ({count['given']:,} of them given)" if count.get("given") else ""
                held = f"{count['documents']:,} documents, {count['tokens']:,} tokens{given}, {count['bytes']:,} bytes"
                twice = f", {count['near']:,} of them near duplicates" if count.get("near") else ""
                lines.append(f"data: {name}{split} {held}{twice}")
        asked = self.tokenizer.vocab_size if isinstance(self.tokenizer, BPE) else self.encoder.specials.vocab_size
        if self.encoder.specials.vocab_size < asked:
            lines.append(f"data: the corpus fills {self.encoder.specials.vocab_size} of the {asked} ids asked for")
        if self.reading == "streamed":
            return [*lines, f"data: streamed; held out are the first {HELD_OUT} documents of each held-out split"]
        return [*lines, *self._left_out(), *self._repetitions()]

    def _left_out(self) -> list[str]:
        """A line for every split of a component that holds documents longer than a row, of those that are not cut."""
        lines = []
        for split in SPLITS:
            for part, stream in zip(self.corpus.components, self.corpus.streams(split), strict=True):
                long = left_out(stream, self.seq_len)
                if long:
                    name = f"{part.component.name}: " if part.component.name else ""
                    count = f"{long:,} of {len(stream.starts):,} documents"
                    lines.append(f"data: {name}{split}: {count} need more than data.seq_len {self.seq_len}; left out")
        return lines

    def _repetitions(self) -> list[str]:
        """A line for every component that the run sees more than once."""
        counts = self.training_order().interleaving.counts(self.pace.rows_before(self.trainer.max_steps))
        seen = zip(self.corpus.components, counts.tolist(), self.training_order().counts, strict=True)
        return [
            f"data: {part.component.name or 'the training split'} is seen {count / rows:.1f} times in this run"
            for part, count, rows in seen
            if count > rows
        ]

    # ------------------------------------------------------------------------------------------------------- loaders
    def _shares(self) -> Shares:
        trainer, (rank, size) = self.trainer, data_rank(self.trainer)
        steps = trainer.max_steps + 1  # one more than will be taken: Lightning never reaches the end of an epoch
        return Shares(self.pace, trainer.accumulate_grad_batches, rank, size, steps, self.left_out)

    def leave_out(self, start: int, stop: int) -> None:
        """Train step `start` (from 0) and those after it on the rows that come after those of step `stop` - 1."""
        shares = self._shares()
        first, last = shares.rows_before(start), shares.rows_before(stop)
        self.left_out = (*(stretch for stretch in self.left_out if stretch[0] < first), (first, last - first))

    def state_dict(self) -> dict[str, Any]:
        return {"left_out": self.left_out} if self.left_out else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.left_out = self.left_out or tuple(map(tuple, state["left_out"]))  # a run that went back knows of more

    def training_order(self) -> RowOrder:
        """The order of prepared training rows: of each component as many as make up its share of the tokens."""
        packed, components = self.rows("train").components, [part.component for part in self.corpus.components]
        fills = [part.scored / max(1, len(part)) for part in packed]
        weights = [component.weight / max(1, fill) for component, fill in zip(components, fills, strict=True)]
        names = [component.name for component in components]
        return RowOrder([len(part) for part in packed], Interleaving(weights), names, self.seed)

    def train_dataloader(self) -> BatchLoader:
        if self.reading == "streamed":
            feed = StreamedFeed(self._readers(), self._shares(), self.num_workers)
        else:
            feed = PreparedFeed(self.rows("train"), TrainPlan(self._shares(), self.training_order()), self.num_workers)
        return BatchLoader(feed, pin=self._pins())

    def _readers(self) -> list[Reader]:
        return [
            Reader(part.component, self.encoder, self.seq_len, self.packing, self.seed, number << 40)
            for number, part in enumerate(self.corpus.components)
        ]

    def val_dataloader(self) -> BatchLoader:
        return self._evaluated("validation")

    def test_dataloader(self) -> BatchLoader:
        return self._evaluated("test")

    def _evaluated(self, split: Split) -> BatchLoader:
        rows, (rank, processes) = self.rows(split), data_rank(self.trainer)
        size = max(1, self.batch_size // (self.trainer.accumulate_grad_batches * processes))
        return BatchLoader(PreparedFeed(rows, EvalPlan(len(rows), size, rank, processes)), pin=self._pins())

    def _pins(self) -> bool:
        return self.trainer.strategy.root_device.type == "cuda"

    def transfer_batch_to_device(self, batch: Batch, device: object, dataloader_idx: int) -> Batch:
        return batch if batch.tokens.device == device else batch.to(device, non_blocking=True)


def rows_of_a_step(seq_len: int, batch_size: int | None, batch_tokens: int | None) -> int:
    """The batch size in rows, however it was given.

    Raises:
        RequestError: it was given twice, or is not whole rows.
    """
    if batch_tokens is None:
        return BATCH_SIZE if batch_size is None else batch_size
    if batch_size is not None:
        raise RequestError(
            f"data.batch_size: {batch_size} beside data.batch_tokens {batch_tokens}; give one of the two"
        )
    if batch_tokens % seq_len:
        raise RequestError(f"data.batch_tokens: {batch_tokens}; allowed: multiples of data.seq_len, {seq_len}")
    return batch_tokens // seq_len


def _check_values(
    seq_len: int,
    batch_size: int | None,
    batch_tokens: int | None,
    micro_batch_size: int | None,
    num_workers: int,
    packing: str,
    reading: str,
) -> None:
    counts = {"seq_len": seq_len, "batch_size": batch_size, "batch_tokens": batch_tokens}
    for name, value in {**counts, "micro_batch_size": micro_batch_size, "num_workers": num_workers}.items():
        least = 0 if name == "num_workers" else 1
        if value is not None and value < least:
            raise RequestError(f"data.{name}: {value}; allowed: at least {least}")
    for name, value, hint in (("packing", packing, Packing), ("reading", reading, Reading)):
        if not matches(value, hint):
            raise RequestError(f"data.{name}: {value!r}; allowed: {type_text(hint)}")
