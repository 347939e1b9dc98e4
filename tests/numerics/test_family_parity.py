"""Every public class against ours: logits and the gradient of every parameter, for several tiny configurations each.

To 1e-9 in float64, where the reference's casts to float32 are patched, and to 1e-5 unpatched in float32, relative to
the norm of each tensor. The configurations are in parity_cases.yaml; docs/families.md has the differences found.
"""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lit_small_lm.errors import RequestError
from lit_small_lm.hf.registry import FAMILIES, STOCK

parity = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("parity.py"))))
CASES = parity.all_cases()
FELT = [
    (family, case, key, value)
    for family, spec in parity.FAMILIES_UNDER_TEST.items()
    for case, changes in spec["felt"].items()
    for key, value in changes.items()
]


def named(case):
    return "-".join(map(str, case))


def test_every_stock_class_is_compared():
    assert set(parity.FAMILIES_UNDER_TEST) == {family.model_type for family in STOCK}
    assert all(len(parity.cases(family)) >= 4 for family in parity.FAMILIES_UNDER_TEST)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_float64(case):
    family, name = case
    logits, gradients = parity.differences(parity.cases(family)[name], torch.float64)
    assert logits < parity.EXACT
    assert gradients < parity.EXACT


@pytest.mark.parametrize("case", CASES, ids=named)
def test_float32(case):
    family, name = case
    logits, gradients = parity.differences(parity.cases(family)[name], torch.float32)
    assert logits < parity.PLAIN
    assert gradients < parity.PLAIN


# ------------------------------------------------------------------------------------------- the comparisons can fail
@pytest.mark.parametrize("case", FELT, ids=lambda case: "-".join(map(str, case[:3])))
def test_every_setting_is_felt(case):
    """With one setting read otherwise the same weights give other logits, far outside the tolerance."""
    family, name, key, value = case
    with parity.casts_patched(family):
        both = parity.pair(parity.cases(family)[name], torch.float64, **{key: value})
        tokens = parity.text(61)
        context = parity.Context(parity.Visibility.rows(tokens, kind=both.kind))
        with torch.no_grad():
            theirs, ours = both.theirs(tokens, use_cache=False).logits, both.ours(tokens, context)
    assert parity.relative(ours, theirs) > 100 * parity.EXACT


@pytest.mark.parametrize("family", parity.FAMILIES_UNDER_TEST)
def test_without_the_patch_float64_does_not_agree(family):
    """Shows what the tight tolerance rests on; GPT-2 has no casts to patch."""
    both = parity.pair(parity.cases(family)["base"], torch.float64)
    logits, _ = parity.compared(both)
    assert (logits > parity.EXACT) == (family != "gpt2")


def test_a_weight_in_the_wrong_place_is_seen():
    both = parity.pair(parity.cases("llama")["base"], torch.float64)
    with torch.no_grad():
        weight = both.ours.layers[1].mixer.qkv_proj.weight
        weight.copy_(weight.roll(1, 0))
    logits, gradients = parity.compared(both)
    assert logits > 1e-3
    assert gradients > 1e-3


def test_settings_that_nobody_has_are_refused():
    config = {**parity.cases("llama")["base"], "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}
    with pytest.raises(RequestError, match="rope_type: 'dynamic' is not a known name; known: default, linear"):
        FAMILIES["llama"].read(config)
