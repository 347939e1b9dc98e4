"""Writes a folder in the public form: config.json, safetensors (in shards above a size), tokenizer, special ids."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from tokenizers import Tokenizer as Library
from tokenizers import processors
from torch import Tensor

from lit_small_lm.errors import RequestError, shown
from lit_small_lm.folder import CONFIG, INDEX, TOKENIZER
from lit_small_lm.plugin import Encoder, Specials

GENERATION, TOKENIZER_SETTINGS = "generation_config.json", "tokenizer_config.json"
SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    "model_input_names": [
        "input_ids",
        "attention_mask",
    ],  # GPT-2's class adds vectors for types of tokens to the others
    "padding_side": "left",  # where a text goes on at its right end
}
SIZE = re.compile(r"0*[1-9][0-9]{0,5}(KB|MB|GB|TB)", re.IGNORECASE)


def write_weights(folder: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, max_shard_size: str) -> list[str]:
    """Write tensors as `dtype`, in files of `max_shard_size` ("5GB") at most; returns their names."""
    stored = {name: tensor.detach().to(dtype, copy=True).contiguous() for name, tensor in tensors.items()}
    split = split_torch_state_dict_into_shards(stored, max_shard_size=max_shard_size)
    for file, names in split.filename_to_tensors.items():
        save_file({name: stored[name] for name in names}, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    return sorted(split.filename_to_tensors)


def check_shard_size(text: str) -> None:
    """Raise RequestError if a text is no size such as 5GB."""
    if not SIZE.fullmatch(text):
        raise RequestError(f"--max_shard_size: {shown(text)!r}; allowed: a whole number of KB, MB, GB or TB, as in 5GB")


def write_config(folder: Path, config: Mapping[str, Any], dtype: torch.dtype, specials: Specials) -> None:
    """Write config.json, and generation_config.json with the ids that are never drawn."""
    named = {"bos": specials.start, "eos": specials.end, "pad": specials.pad}
    ids = {f"{role}_token_id": index for role, index in named.items() if index is not None}
    write_json(folder / CONFIG, {**config, **ids, "dtype": str(dtype).removeprefix("torch.")})
    never = specials.never_drawn()
    write_json(folder / GENERATION, {**ids, **({"suppress_tokens": never} if never else {})})


def write_tokenizer(folder: Path, encoder: Encoder, max_length: int | None) -> str:
    """Write the tokenizer as the `tokenizers` library and AutoTokenizer read it; returns why it cannot be, or "".

    It begins every text with the token that documents begin with, as they did in training.
    """
    text = encoder.tokenizer_json()
    if text is None:
        return f"{type(encoder).__name__} cannot be written as a {TOKENIZER}"
    library, specials = Library.from_str(text), encoder.specials
    start = library.id_to_token(specials.start)
    single, pair = [start, "$A"], [start, "$A", f"{start}:1", "$B:1"]
    library.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(start, specials.start)]
    )
    library.save(str(folder / TOKENIZER))
    named = {"bos": specials.start, "eos": specials.end, "pad": specials.pad, "mask": specials.mask}
    tokens = {f"{role}_token": library.id_to_token(i) for role, i in named.items() if i is not None}
    length = {"model_max_length": max_length} if max_length else {}
    write_json(folder / TOKENIZER_SETTINGS, {**SETTINGS, **tokens, **length})
    return ""


def write_json(file: Path, value: object) -> None:
    """Write plain data; NaN and infinities are errors."""
    file.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
