"""Every public model class that we know, by the `model_type` of its config.json.

`read_model` turns a config.json into our terms, `fitting` finds the public class that expresses a backbone of ours.
"""

from collections.abc import Mapping
from typing import Any

from lit_small_lm.backbone import BackboneSpec
from lit_small_lm.errors import RequestError, not_known
from lit_small_lm.hf.families.bert import Bert
from lit_small_lm.hf.families.deepseek_v3 import DeepSeekV3
from lit_small_lm.hf.families.dhara import Dhara
from lit_small_lm.hf.families.gemma3 import Gemma3
from lit_small_lm.hf.families.gpt2 import GPT2
from lit_small_lm.hf.families.gpt_neox import GPTNeoX
from lit_small_lm.hf.families.lfm2 import LFM2
from lit_small_lm.hf.families.llama import Llama
from lit_small_lm.hf.families.mistral import Mistral
from lit_small_lm.hf.families.mixtral import Mixtral
from lit_small_lm.hf.families.olmo2 import Olmo2
from lit_small_lm.hf.families.olmoe import OLMoE
from lit_small_lm.hf.families.qwen2 import Qwen2
from lit_small_lm.hf.families.qwen3 import Qwen3
from lit_small_lm.hf.families.qwen3_moe import Qwen3MoE
from lit_small_lm.hf.families.smollm3 import SmolLM3
from lit_small_lm.hf.family import Family
from lit_small_lm.hf.public import Model, Unfit
from lit_small_lm.shapes import FixedShape

STOCK: tuple[Family, ...] = (
    Llama(),
    GPT2(),
    Mistral(),
    Qwen2(),
    Qwen3(),
    SmolLM3(),
    Olmo2(),
    Gemma3(),
    GPTNeoX(),
    LFM2(),
    Mixtral(),
    Qwen3MoE(),
    OLMoE(),
    DeepSeekV3(),
)
"""Classes that transformers ships with a language-model head, the most common ones first."""
OTHERS: tuple[Family, ...] = (Dhara(), Bert())
"""Classes to read but not to write: remote code, or no language model."""
FAMILIES: dict[str, Family] = {family.model_type: family for family in (*STOCK, *OTHERS)}
"""`model_type` -> class."""


def family_of(config: Mapping[str, Any]) -> Family:
    """The class that a config.json names. Raises RequestError with the nearest known `model_type`."""
    if not isinstance(config, Mapping):
        raise RequestError("config.json: not an object")
    name = config.get("model_type")
    if not isinstance(name, str):
        raise RequestError(f"config.json: model_type: {name!r}; allowed: one of {', '.join(sorted(FAMILIES))}")
    if name not in FAMILIES:
        raise not_known("config.json: model_type", name, FAMILIES)
    return FAMILIES[name]


def read_model(config: Mapping[str, Any]) -> Model:
    """A config.json in our terms; nothing of it is executed.

    Raises:
        RequestError: a class or a setting that we do not have, or a value of the wrong type or range.
    """
    return family_of(config).read(config)


def fitting(backbone: BackboneSpec, shape: FixedShape, vocab_size: int) -> tuple[Family, dict[str, Any]]:
    """The public class that expresses a backbone, and its config.json.

    Raises:
        Unfit: none does; what the class that comes nearest lacks.
    """
    model, reasons = Model(backbone, shape, vocab_size), []
    for family in STOCK:
        try:
            return family, family.write(model)
        except Unfit as error:
            reasons.append(error)
    raise min(reasons, key=lambda error: error.faults)
