"""The wrapper: transformers' interface over our forward pass, padding, decoding with a cache, and the round trip."""

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

import lit_small_lm.hf  # noqa: F401  (registers the wrapper)
from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.checkpoint import LanguageModel, make_record
from lit_small_lm.context import Context, Visibility
from lit_small_lm.data.tokenizer import Bytes
from lit_small_lm.discovery import discover
from lit_small_lm.errors import RequestError
from lit_small_lm.hf.exporting import export
from lit_small_lm.hf.model import DecodingMemory, LitSmallLMConfig, LitSmallLMForCausalLM
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.positions import Learned
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.shapes import FixedShape

discover()
SHAPE = FixedShape(dim=16, n_layers=2, n_heads=2, n_kv_heads=1, hidden=24)
FAMILIES = {
    "canon": BackboneSpec(layer=LayerSpec(canon_at="ABCD")),
    "windows and convolutions": BackboneSpec(
        layer=LayerSpec(mixer=Attention(window=4), canon_at="AC"),
        more_layers={"conv": LayerSpec(mixer=ShortConv())},
        pattern=("conv", "layer"),
        head="untied",
    ),
    "learned positions": BackboneSpec(layer=LayerSpec(canon_at="B"), positions=Learned(length=24)),
}
TEXT = torch.tensor([[0, 70, 80, 90, 100, 110, 75, 85]])


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    """An exported model that no public class expresses."""
    spec, encoder = FAMILIES[request.param], Bytes().learn(iter([]))
    torch.manual_seed(0)
    net = Backbone(spec, SHAPE.resolve(), encoder.specials.vocab_size).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    record = make_record(
        backbone=spec, shape=SHAPE, objective=NextToken(), tokenizer=Bytes(), encoder=encoder, step=3, config=""
    )
    out = tmp_path_factory.mktemp("exported")
    export(LanguageModel(net, NextToken(), encoder, record), out)
    return out


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def plain(model, ids):
    with torch.no_grad():
        return model.net(ids, Context(Visibility.rows(ids)))


def test_the_auto_classes_find_it(folder, model):
    assert isinstance(model, LitSmallLMForCausalLM) and isinstance(AutoConfig.from_pretrained(folder), LitSmallLMConfig)
    assert torch.equal(model(TEXT).logits, plain(model, TEXT))


def test_save_and_load_again(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.net.spec == model.net.spec
    assert torch.equal(again(TEXT).logits, model(TEXT).logits)


def test_a_new_model_is_drawn_as_the_family_draws_it(model):
    """Not by transformers, which would draw convolutions from a narrow normal distribution."""
    torch.manual_seed(5)
    found = AutoModelForCausalLM.from_config(model.config).net.state_dict()
    torch.manual_seed(5)
    wanted = Backbone(model.net.spec, model.net.dims, 259).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_labels_give_the_loss_of_the_next_tokens(model):
    labels = TEXT.clone()
    labels[0, 3] = -100
    nll = torch.nn.functional.cross_entropy(plain(model, TEXT)[0, :-1], TEXT[0, 1:], reduction="none")
    wanted = nll[[0, 1, 3, 4, 5, 6]].mean()
    torch.testing.assert_close(model(TEXT, labels=labels).loss, wanted)
    model(TEXT, labels=labels).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad()


@pytest.mark.parametrize("count", [1, 3, 0, 8])
def test_logits_of_the_last_positions_alone(model, count):
    ids = TEXT.expand(2, -1)
    torch.testing.assert_close(model(ids, logits_to_keep=count).logits, model(ids).logits[:, -count:])


def test_padding_changes_nothing(model):
    alone = model(TEXT).logits
    for pads in (1, 5):
        fill = torch.full((1, pads), 1)
        left, right = torch.cat([fill, TEXT], 1), torch.cat([TEXT, fill], 1)
        seen = torch.ones_like(TEXT)
        before, after = torch.cat([fill * 0, seen], 1), torch.cat([seen, fill * 0], 1)
        torch.testing.assert_close(model(left, attention_mask=before).logits[:, pads:], alone)
        torch.testing.assert_close(model(right, attention_mask=after).logits[:, :-pads], alone)
        assert torch.isfinite(model(left, attention_mask=before).logits).all()


def test_a_mask_of_another_shape_is_refused(model):
    with pytest.raises(RequestError, match=r"attention_mask: shape .1, 5.; allowed: .1, 8., of 1 and 0"):
        model(TEXT, attention_mask=torch.ones(1, 5))


def test_padding_inside_a_text_is_refused(model):
    """A convolution would take it for a neighbour, and its result would pass for that of the text without it."""
    mask = torch.ones_like(TEXT)
    mask[0, 3] = 0
    with pytest.raises(RequestError, match="attention_mask: 0 between ones; allowed: 0 left or right of a row's text"):
        model(TEXT, attention_mask=mask)
    both = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 0], [0] * 8])
    found = model(TEXT.expand(2, -1), attention_mask=both).logits[:1, 2:7]
    torch.testing.assert_close(found, model(TEXT[:, 2:7]).logits)


@pytest.mark.parametrize("name", ["position_ids", "inputs_embeds"])
def test_what_would_be_passed_over_is_refused(model, name):
    """Packed rows come with positions of their own: as one document they would give other logits, and no sign of it."""
    with pytest.raises(RequestError, match=f"{name}: given; allowed: null"):
        model(TEXT, **{name: torch.zeros(1, 8, dtype=torch.long)})
    assert torch.equal(model(TEXT, **{name: None}).logits, model(TEXT).logits)


def test_decoding_by_steps_and_pieces(model):
    whole = model(TEXT).logits
    for size in (1, 3):
        past, found = None, []
        for piece in TEXT.split(size, dim=1):
            out = model(piece, past_key_values=past, use_cache=True)
            past = out.past_key_values
            found.append(out.logits)
        torch.testing.assert_close(torch.cat(found, 1), whole)
        assert past.get_seq_length() == TEXT.shape[1]


PADDED = {
    "input_ids": torch.tensor([[0, 70, 80, 90, 100], [1, 1, 0, 75, 85]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]),
}
ALONE = {"input_ids": torch.tensor([[0, 75, 85]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}


@pytest.mark.parametrize(
    "options",
    [{"do_sample": False}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}],
    ids=["greedy", "beams", "sampled"],
)
def test_generate_with_a_cache_as_without(model, options):
    found = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        found.append(model.generate(**PADDED, max_new_tokens=10, use_cache=use_cache, **options))
    assert torch.equal(*found)


def test_a_long_text_may_be_read_in_chunks(model):
    options = {"max_new_tokens": 10, "do_sample": False}
    chunked = model.generate(**PADDED, **options, prefill_chunk_size=2, past_key_values=DecodingMemory())
    assert torch.equal(chunked, model.generate(**PADDED, **options))


def test_another_cache_is_not_taken_for_ours(model):
    cache = DynamicCache()
    torch.testing.assert_close(model(TEXT, past_key_values=cache, use_cache=True).logits, model(TEXT).logits)
    cache.update(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4), 0)
    with pytest.raises(RequestError, match="past_key_values: a DynamicCache; allowed: what an earlier call returned"):
        model(TEXT, past_key_values=cache, use_cache=True)


def test_generate_writes_what_each_text_gets_alone(model):
    together = model.generate(**PADDED, max_new_tokens=10, do_sample=False)
    alone = model.generate(**ALONE, max_new_tokens=10, do_sample=False)
    assert torch.equal(together[1, 5 : 5 + alone.shape[1] - 3], alone[0, 3:])


def test_neither_padding_nor_mask_is_drawn(model):
    with torch.no_grad():
        wanted = plain(model, TEXT)[0, -1].topk(3).indices
    model.generation_config.suppress_tokens = wanted[:2].tolist()
    assert model.generate(TEXT, max_new_tokens=1, do_sample=False)[0, -1] == wanted[2]
    model.generation_config.suppress_tokens = [1, 2]


def test_more_positions_than_there_are(model):
    if model.net.limit() is None:
        assert model(torch.zeros(1, 40, dtype=torch.long)).logits.shape[1] == 40
        return
    with pytest.raises(RequestError, match="input_ids: 40 positions; the model has 24"):
        model(torch.zeros(1, 40, dtype=torch.long))


# ------------------------------------------------------------------------------------------------------- registration
LIGHT, AUTO = "assert 'transformers' not in sys.modules", "from transformers import AutoModelForCausalLM"
ORDERS = {
    "before": f"import lit_small_lm.hf; {LIGHT}; {AUTO}",
    "after": f"{AUTO}; import lit_small_lm.hf",
    "through a room": f"import lit_small_lm.hf.registry; {LIGHT}; import transformers; {AUTO}",
}
CODE = "import sys; {}; from transformers import AutoConfig as A; print(A.for_model('lit_small_lm').model_type)"


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_it_is_registered_in_any_order_of_imports(order):
    words = [sys.executable, "-c", CODE.format(ORDERS[order])]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ, timeout=120)
    assert done.stdout.strip() == "lit_small_lm", done.stderr
