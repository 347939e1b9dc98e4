"""Every public class against ours where rows are padded, decoded with a cache, or looked at both ways."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lit_small_lm.context import Context, Visibility

parity = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("parity.py"))))
CAUSAL = [
    (family, case)
    for family, case in parity.all_cases()
    if not parity.cases(family)[case].get("use_bidirectional_attention")
]
ODD = {"base", "windows", "windows above", "four kinds", "YaRN", "two bases, one of them stretched", "drawn 1"}
FEW = [case for case in CAUSAL if case[1] in ODD]
PIECES = {"step by step": [1] * 17, "in chunks": [5, 1, 7, 4], "prompt, then steps": [12, 1, 1, 1, 1, 1]}


def named(case):
    return "-".join(map(str, case))


@pytest.fixture
def exact_pair(request):
    """Reference and ours in float64 for (family, case), inside the patch."""
    family, case = request.param
    with parity.casts_patched(family):
        yield parity.pair(parity.cases(family)[case], torch.float64)


@pytest.mark.parametrize("exact_pair", FEW, ids=named, indirect=True)
def test_cached_decoding_gives_the_reference_s_full_pass(exact_pair):
    tokens = parity.text(61)
    with torch.no_grad():
        wanted = exact_pair.theirs(tokens, use_cache=False).logits
    for how, sizes in PIECES.items():
        assert parity.relative(parity.decoded(exact_pair, tokens, sizes), wanted) < parity.EXACT, how


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("exact_pair", FEW, ids=named, indirect=True)
def test_padding(exact_pair, side):
    ours, theirs = parity.padded(exact_pair, side)
    assert len(ours) == 17 + 11 + 6
    assert parity.relative(ours, theirs) < parity.EXACT


def test_padding_that_is_looked_at_is_seen():
    both = parity.pair(parity.cases("llama")["base"], torch.float32)
    tokens = parity.text(61)
    _, theirs = parity.padded(both, "left")
    with torch.no_grad():
        ours = both.ours(tokens, Context(Visibility.rows(tokens)))
    lengths = torch.tensor([17, 11, 6])
    assert parity.relative(ours[torch.arange(17) >= 17 - lengths[:, None]], theirs) > 1e-3


LOOKING_BOTH_WAYS = [family for family in parity.FAMILIES_UNDER_TEST if family != "gemma3_text"]


@pytest.mark.parametrize("family", LOOKING_BOTH_WAYS)
def test_causal_flag_off(family):
    """`is_causal: false` in a config.json; windows then reach to both sides. Gemma 3 has a flag of its own, tried with
    the other cases."""
    for case in ("base", *ODD & parity.FAMILIES_UNDER_TEST[family]["odd"].keys()):
        config = {**parity.cases(family)[case], "is_causal": False}
        assert max(parity.differences(config, torch.float64)) < parity.EXACT, case


def test_causal_flag_off_equals_a_mask_that_shows_all():
    """The older way to the same: a 4-D mask of zeros."""
    with parity.casts_patched("llama"):
        both = parity.pair(parity.cases("llama")["base"], torch.float64)
        tokens = parity.text(61)
        with torch.no_grad():
            theirs = both.theirs(tokens, attention_mask=torch.zeros(3, 1, 17, 17), use_cache=False).logits
            ours = both.ours(tokens, Context(Visibility.rows(tokens, kind="bidirectional")))
            causal = both.ours(tokens, Context(Visibility.rows(tokens)))
    assert parity.relative(ours, theirs) < parity.EXACT
    assert parity.relative(causal, theirs) > 1e-3
