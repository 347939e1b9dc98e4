"""A model of ours as a transformers model: the Auto classes, `generate`, `save_pretrained`, over our own forward pass.

Importing this module makes AutoConfig and AutoModelForCausalLM know `model_type` "lit_small_lm".
Padding, left or right, is told by `attention_mask`: padded positions are documents of their own, which nothing sees.
`generate` keeps our own decoding cache, which also holds the last inputs of every convolution; to read a long text in
chunks (`prefill_chunk_size`) give it one, `past_key_values=DecodingMemory()`.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging

from lit_small_lm.backbone import Backbone
from lit_small_lm.context import Cache, Context, Kind, Visibility
from lit_small_lm.discovery import discover
from lit_small_lm.errors import RequestError
from lit_small_lm.hf.importing import form_of
from lit_small_lm.release import OWN


class LitSmallLMConfig(PreTrainedConfig):
    """The config.json of a model that no public class expresses; `lit_small_lm` is its record."""

    model_type = OWN
    lit_small_lm: dict | None = None
    vocab_size: int = 0
    hidden_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    max_position_embeddings: int | None = None


class DecodingMemory:
    """Our decoding cache, as `generate` carries it from step to step."""

    is_compileable = False

    def __init__(self) -> None:
        self.cache = Cache()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions held."""
        return self.cache.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with these rows (beam search)."""
        self.cache.select(beam_idx)


class LitSmallLMForCausalLM(PreTrainedModel, GenerationMixin):
    """The backbone behind transformers' interface.

    Args:
        config: with the record of the model.

    Raises:
        RequestError: the record names a class that is not known; a plug-in of your own has to be discovered before.
    """

    config_class = LitSmallLMConfig
    base_model_prefix = "net"

    def __init__(self, config: LitSmallLMConfig) -> None:
        super().__init__(config)
        discover()
        form = form_of(config.to_dict())
        asked = form.objective.decoding()
        self.kind, self.block_size = asked.kinds[0], asked.block_size
        self.net = Backbone(form.model.backbone, form.model.shape.resolve(), form.model.vocab_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The backbone has drawn its weights when it was built."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # it would not hold the inputs of convolutions

    def get_input_embeddings(self) -> nn.Module:
        """The table of tokens."""
        return self.net.embed

    def get_output_embeddings(self) -> nn.Module | None:
        """The head, where it has weights of its own."""
        return self.net.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: DecodingMemory | None = None,
        use_cache: bool = False,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids (B, T) -> logits (B, T, V), and with `labels` (B, T) the loss of each token from those before it.

        Args:
            input_ids: token ids; a text begins with the token that documents begin with.
            attention_mask: (B, past + T), 0 where there is padding, left or right of the text.
            labels: the ids again, -100 where nothing is asked.
            past_key_values: what an earlier call with `use_cache` returned.
            use_cache: return a memory to go on from.
            logits_to_keep: logits of that many last positions only; 0: of all.
            return_dict: there is always a dict.
            kwargs: what transformers' loss takes, such as `num_items_in_batch`.

        Raises:
            RequestError: more positions than the model has, padding inside a text, or positions or embeddings of your
                own, which would be passed over.
        """
        _refuse_others(kwargs)
        memory = _memory(past_key_values, use_cache)
        cache = None if memory is None else memory.cache
        start = 0 if cache is None else cache.length
        self._refuse_longer(start + input_ids.shape[1])
        ctx = Context(visibility(input_ids, attention_mask, self.kind, start, self.block_size), cache)
        if labels is None:
            return CausalLMOutputWithPast(logits=self._last(input_ids, ctx, logits_to_keep), past_key_values=memory)
        logits = self.net(input_ids, ctx)
        loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        if self.training:
            loss = sum(ctx.trace.losses.values(), start=loss)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=memory)

    def _last(self, input_ids: Tensor, ctx: Context, count: int | Tensor) -> Tensor:
        """Logits (B, count, V) of the last positions, or of those that a tensor picks; of all where count is 0."""
        rows, time = input_ids.shape
        index = torch.arange(time, device=input_ids.device)
        index = index[-count:] if isinstance(count, int) else index[count]
        if len(index) == time:
            return self.net(input_ids, ctx)
        scored = (torch.arange(rows, device=index.device)[:, None] * time + index).flatten()  # (B * count,)
        return self.net(input_ids, ctx, scored=scored).unflatten(0, (rows, -1))

    def _refuse_longer(self, length: int) -> None:
        limit = self.net.limit()
        if limit is not None and length > limit:
            raise RequestError(f"input_ids: {length} positions; the model has {limit}")


def _refuse_others(given: Mapping[str, Any]) -> None:
    """Raise RequestError for inputs that the network makes itself."""
    for name, source in (("position_ids", "attention_mask"), ("inputs_embeds", "input_ids")):
        if given.get(name) is not None:
            raise RequestError(f"{name}: given; allowed: null, they follow from {source}")


def _memory(past: Any, use_cache: bool) -> DecodingMemory | None:
    """What to decode with: what was given, a new one where it is asked for, or none."""
    if isinstance(past, DecodingMemory):
        return past
    if past is not None and past.get_seq_length():
        raise RequestError(f"past_key_values: a {type(past).__name__}; allowed: what an earlier call returned")
    return DecodingMemory() if use_cache else None


def visibility(
    ids: Tensor, mask: Tensor | None, kind: Kind, start: int = 0, block_size: int | None = None
) -> Visibility:
    """Who sees whom among `ids` (B, T) behind `start` cached positions.

    Args:
        ids: the new tokens.
        mask: (B, start + T) of 1 and 0 as transformers has it, or None. What is 0 is seen by nothing but its like; it
            lies left or right of a text, not inside, where convolutions would take it for a neighbour.
        kind: the objective's.
        start: positions that came before.
        block_size: the objective's, of kind "block".

    Raises:
        RequestError: the mask has another shape, or a gap.
    """
    if mask is not None and tuple(mask.shape) != (ids.shape[0], start + ids.shape[1]):
        wanted = (ids.shape[0], start + ids.shape[1])
        raise RequestError(f"attention_mask: shape {tuple(mask.shape)}; allowed: {wanted}, of 1 and 0")
    if mask is None or bool(mask.all()):
        return Visibility.rows(ids, kind=kind, start=start, block_size=block_size)
    seen = mask.long()
    begins = seen.diff(dim=1, prepend=torch.zeros_like(seen[:, :1])) > 0  # (B, start + T)
    if bool((begins.sum(1) > 1).any()):
        raise RequestError("attention_mask: 0 between ones; allowed: 0 left or right of a row's text")
    positions = (seen.cumsum(1) - 1).clamp(min=0)  # (B, start + T), from 0 at the first that is seen
    return Visibility(positions[:, start:], seen[:, start:] - 1, kind, block_size)


def public_logits(folder: Path, ids: Tensor) -> Tensor:
    """Logits (B, T, V) of ids (B, T) by transformers itself, in float32, of a folder that this package has written."""
    with _quiet(), torch.no_grad():
        net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        return net.eval()(input_ids=ids).logits


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warnings and progress bars."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


AutoConfig.register(OWN, LitSmallLMConfig)
AutoModelForCausalLM.register(LitSmallLMConfig, LitSmallLMForCausalLM)
