"""A tiny model in the form in which public ones are found on a hub, made without transformers."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.hf.importing import form_of
from lit_small_lm.hf.names import to_theirs
from lit_small_lm.hf.registry import fitting
from lit_small_lm.shapes import FixedShape

SHAPE = FixedShape(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, hidden=24)
END = "<|endoftext|>"
TEXTS = ["the cat sat on the mat, and the dog sat on the log"] * 20
FREE = 3
"""Rows that no token has."""


def write(folder: Path, changes: dict) -> Path:
    """Write config.json, model.safetensors and tokenizer.json; weights are drawn from one seed."""
    library = write_tokenizer(folder, [END])
    end = library.token_to_id(END)
    _, config = fitting(BackboneSpec(), SHAPE, library.get_vocab_size() + FREE)
    config |= {"bos_token_id": end, "eos_token_id": end, "max_position_embeddings": 64, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    form = form_of(config)
    torch.manual_seed(0)
    net = Backbone(form.model.backbone, form.model.shape.resolve(), form.model.vocab_size)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    tensors = to_theirs(form.entries, net.state_dict())
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def write_tokenizer(folder: Path, special: list[str]) -> Tokenizer:
    """Write a tokenizer.json as GPT-2's: byte-level BPE, the special tokens last."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    )
    library.add_special_tokens(special)
    library.save(str(folder / "tokenizer.json"))
    return library
