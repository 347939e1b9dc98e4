"""Public model classes beside ours, on the same random weights: what the parity tests compare, and their table.

The reference is built, saved with `save_pretrained` and read back with our reader and name maps; its gradients take the
same way. transformers computes norms, rotary tables, softmaxes and routers in float32 even in a float64 model;
`Exact` makes float32 mean float64 inside its modules, so that both sides can be compared to the last digits.

`python tests/numerics/parity.py` prints the table of docs/families.md.
"""

import dataclasses
import json
import random
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
import transformers
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from lit_small_lm.backbone import Backbone
from lit_small_lm.context import Cache, Context, Visibility
from lit_small_lm.hf.names import to_ours
from lit_small_lm.hf.public import Model
from lit_small_lm.hf.registry import FAMILIES, read_model

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
FAMILIES_UNDER_TEST = yaml.safe_load(Path(__file__).with_name("parity_cases.yaml").read_text())
EXACT, PLAIN = 1e-9, 1e-5
"""Tolerances: in float64 with the casts patched, in float32 without, relative to the norm of each tensor."""
ZERO = 1e-6
"""Gradients this much smaller than the largest are zero but for rounding: a router with one expert of weight one."""
SCALE = 0.2
"""Standard deviation of weights: logits are of order one. With larger ones softmaxes and norms amplify rounding, with
smaller ones norms of what branches put out do (OLMo 2)."""
TOKENS = (3, 17)
NO_TOKENS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
"""A padding token would get no gradient in the reference."""


class Exact:
    """torch, but its float32 is float64."""

    def __getattr__(self, name):
        return torch.float64 if name in ("float32", "float") else getattr(torch, name)


@contextmanager
def casts_patched(model_type: str) -> Iterator[None]:
    """Inside, transformers' casts to float32 keep float64."""
    config = CONFIG_MAPPING[model_type]
    modules = [f"{config.__module__.replace('configuration', 'modeling')}", "transformers.modeling_rope_utils"]
    usual = torch.get_default_dtype()
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(Tensor, "float", Tensor.double))
        for module in modules:
            patches.enter_context(mock.patch(f"{module}.torch", Exact()))
        patches.callback(torch.set_default_dtype, usual)
        torch.set_default_dtype(torch.float64)  # constants that the modules keep as tensors
        yield


def cases(family: str) -> dict[str, dict]:
    """The configurations tried of a family: the odd ones written down, and some drawn from its options."""
    spec = FAMILIES_UNDER_TEST[family]
    base = {"model_type": family, **NO_TOKENS, **spec["base"]}
    found = {name: {**base, **changes} for name, changes in {"base": {}, **spec["odd"]}.items()}
    for seed in range(spec.get("drawn", 2)):
        rng = random.Random(seed)
        found[f"drawn {seed}"] = {**base, **{key: rng.choice(values) for key, values in spec["options"].items()}}
    return found


def all_cases() -> list[tuple[str, str]]:
    """(family, name of a case) for every one."""
    return [(family, name) for family in FAMILIES_UNDER_TEST for name in cases(family)]


def reference(config: Mapping, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """The public class with random weights, gains around one (or zero, where one is added to them)."""
    given = {key: value for key, value in config.items() if key != "model_type"}
    public = CONFIG_MAPPING[config["model_type"]](**given)
    public._attn_implementation, public._experts_implementation = "sdpa", "eager"
    torch.manual_seed(0)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(public)](public).to(dtype).eval()
    gain = 0.0 if config["model_type"] == "gemma3_text" else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = gain if parameter.ndim == 1 and not name.endswith("bias") else 0.0
            parameter.normal_(mean, SCALE)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.1)
    return model


@dataclasses.dataclass
class Pair:
    """The reference and ours on the same weights."""

    theirs: transformers.PreTrainedModel
    ours: Backbone
    model: Model
    config: dict
    """config.json as it was saved."""

    @property
    def kind(self) -> str:
        return "bidirectional" if self.model.bidirectional else "causal"

    def translated(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under the names of their parameters (weights, gradients) -> under ours, by way of a saved file."""
        entries = FAMILIES[self.config["model_type"]].names(self.model)
        with tempfile.TemporaryDirectory() as folder:
            self.theirs.save_pretrained(folder, state_dict=dict(tensors))
            saved = load_file(Path(folder) / "model.safetensors")
        used = {name for entry in entries for name in entry.theirs}
        assert set(saved) <= used, f"not in our map: {sorted(set(saved) - used)}"
        return to_ours([entry for entry in entries if set(entry.theirs) <= set(saved)], saved)


def pair(config: Mapping, dtype: torch.dtype, **changes) -> Pair:
    """Both on the same weights; `changes` to the config.json that ours is read from."""
    theirs = reference(config, dtype)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        saved = json.loads((Path(folder) / "config.json").read_text())
    model = read_model({**saved, **changes})
    ours = Backbone(model.backbone, model.shape.resolve(), model.vocab_size).to(dtype).eval()
    found = Pair(theirs, ours, model, saved)
    ours.load_state_dict(found.translated(theirs.state_dict()))
    return found


def relative(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference over the norm of what is wanted; where that is zero both must be."""
    assert found.shape == wanted.shape
    norm, difference = wanted.norm().item(), (found - wanted).norm().item()
    return difference / norm if norm else (0.0 if difference == 0 else float("inf"))


def text(vocab_size: int) -> Tensor:
    """Random tokens (B, T)."""
    return torch.randint(vocab_size, TOKENS, generator=torch.Generator().manual_seed(1))


def compared(both: Pair) -> tuple[float, float]:
    """The difference of logits, and the largest of any parameter's gradient of a random projection of them."""
    tokens = text(both.model.vocab_size)
    theirs = both.theirs(tokens, use_cache=False).logits
    ours = both.ours(tokens, Context(Visibility.rows(tokens, kind=both.kind)))
    assert theirs.abs().max() > 0.3  # the numbers compared are of the size of a real model's
    probe = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(2)).to(theirs.dtype)
    (theirs * probe).sum().backward()
    (ours * probe).sum().backward()
    wanted = both.translated({name: p.grad for name, p in both.theirs.named_parameters()})
    found = {name: p.grad for name, p in both.ours.named_parameters()}
    assert found.keys() == wanted.keys()
    least = ZERO * max(gradient.norm().item() for gradient in wanted.values())
    there = [name for name in found if max(found[name].norm(), wanted[name].norm()) > least]
    return relative(ours, theirs), max(relative(found[name], wanted[name]) for name in there)


def differences(config: Mapping, dtype: torch.dtype, **changes) -> tuple[float, float]:
    """`compared` for a configuration, with the casts patched in float64."""
    if dtype is torch.float32:
        return compared(pair(config, dtype, **changes))
    with casts_patched(config["model_type"]):
        return compared(pair(config, dtype, **changes))


@torch.no_grad()
def decoded(both: Pair, tokens: Tensor, sizes: list[int]) -> Tensor:
    """Our logits with a cache, the row cut into pieces of these sizes."""
    cache, pieces = Cache(tokens.shape[1]), []
    for piece in tokens.split(sizes, dim=1):
        pieces.append(both.ours(piece, Context(Visibility.rows(piece, start=cache.length), cache)))
    return torch.cat(pieces, dim=1)


@torch.no_grad()
def padded(both: Pair, side: str) -> tuple[Tensor, Tensor]:
    """Logits of both at all positions that are no padding, of rows of 17, 11 and 6 tokens padded on one side."""
    tokens, lengths = text(both.model.vocab_size), torch.tensor([17, 11, 6])
    index = torch.arange(tokens.shape[1]).expand(TOKENS)
    real = index < lengths[:, None] if side == "right" else index >= TOKENS[1] - lengths[:, None]
    places = (real.cumsum(1) - 1).clamp(min=0)
    theirs = both.theirs(tokens, attention_mask=real.long(), position_ids=places, use_cache=False).logits
    documents = torch.where(real, torch.arange(3)[:, None], -1)
    ours = both.ours(tokens, Context(Visibility.rows(tokens, documents, both.kind)))
    return ours[real], theirs[real]


def in_use(config: Mapping) -> float:
    """The largest difference in float64 of decoding with a cache, in steps and in chunks, and of padded rows."""
    with casts_patched(config["model_type"]):
        both = pair(config, torch.float64)
        found = [relative(*padded(both, side)) for side in ("left", "right")]
        if both.kind == "causal":
            tokens = text(both.model.vocab_size)
            with torch.no_grad():
                wanted = both.theirs(tokens, use_cache=False).logits
            found += [relative(decoded(both, tokens, sizes), wanted) for sizes in ([1] * 17, [5, 1, 7, 4])]
    return max(found)


def table() -> Iterator[str]:
    """A line of Markdown for each family: how many configurations, the largest differences."""
    yield "| `model_type` | class | cases | logits | gradients | cached, padded | float32: logits | gradients |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for family in FAMILIES_UNDER_TEST:
        columns = []
        for config in cases(family).values():
            exact = differences(config, torch.float64)
            columns.append((*exact, in_use(config), *differences(config, torch.float32)))
        largest = [f"{max(column):.1e}" for column in zip(*columns, strict=True)]
        yield f"| {' | '.join([family, f'`{FAMILIES[family].architecture}`', str(len(columns)), *largest])} |"


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)
