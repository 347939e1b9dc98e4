"""Checkpoints: what they say of themselves, and what is refused."""

import os
import pickle

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.checkpoint import checkpoints_in, finite, load, make_record, read, record_of, write
from lit_small_lm.data.tokenizer import Bytes
from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.shapes import FixedShape

SHAPE = FixedShape(dim=16, n_layers=2, n_heads=2)
SPEC = BackboneSpec(
    layer=LayerSpec(canon_at="AC"), more_layers={"wide": LayerSpec(canon_at="D")}, pattern=("layer", "wide")
)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint file as training writes it, and the network in it."""
    net = Backbone(SPEC, SHAPE.resolve(), Bytes().learn(iter([])).specials.vocab_size)
    record = make_record(
        backbone=SPEC, shape=SHAPE, objective=NextToken(), tokenizer=Bytes(), encoder=Bytes().learn(iter([])), step=7
    )
    state = {f"net.{key}": value for key, value in net.state_dict().items()}
    file = tmp_path / "step=00000007.ckpt"
    write({"state_dict": state, "lit_small_lm": record}, file)
    return file, net.eval()


def test_load_rebuilds_the_model_from_the_file_alone(saved):
    file, net = saved
    model = load(file)
    assert model.net.spec == SPEC
    assert model.record["step"] == 7
    tokens = torch.randint(3, 259, (2, 9))
    from lit_small_lm.context import Context, Visibility

    assert model.logits(tokens).shape == (2, 9, 259)
    assert torch.equal(model.logits(tokens), net(tokens, Context(Visibility.rows(tokens))))


def test_highest_step_first_and_nothing_but_checkpoints(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("step=00000009.ckpt", "step=00000100.ckpt", "last.ckpt", ".step=00000200.ckpt.new", "step=x.ckpt"):
        (folder / name).touch()
    assert [file.name for file in checkpoints_in(tmp_path)] == ["step=00000100.ckpt", "step=00000009.ckpt"]


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (self.mark,))


@pytest.mark.parametrize("forced", [False, True])
def test_a_payload_does_not_run(tmp_path, monkeypatch, forced):
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    mark, file = tmp_path / "it_ran", tmp_path / "evil.ckpt"
    for dump in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        dump({"state_dict": Payload(str(mark))}, file)
        with pytest.raises(RunError, match="refused"):
            read(file)
        assert not mark.exists()


def test_a_class_is_looked_up_and_never_imported(saved):
    file, _ = saved
    content = read(file)
    content["lit_small_lm"]["backbone"]["class_path"] = "os.system"
    write(content, file)
    with pytest.raises(RequestError, match=r"'os.system' is not a known BackboneSpec"):
        load(file)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 half a zip"])
def test_a_damaged_file_is_named(tmp_path, content):
    file = tmp_path / "step=00000001.ckpt"
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"step=00000001.ckpt"):
        read(file)


def test_an_earlier_format_is_not_misread(saved):
    content = read(saved[0])
    content["lit_small_lm"] |= {"format": 1}
    with pytest.raises(RequestError, match="format 1, whose weights lie in another order"):
        record_of(content)


def test_a_later_format_names_both_versions(saved):
    file, _ = saved
    content = read(file)
    content["lit_small_lm"] |= {"format": 99, "version": "9.9"}
    with pytest.raises(RequestError, match=r"format 99 of version 9\.9"):
        record_of(content)
    with pytest.raises(RequestError, match="no lit_small_lm record"):
        record_of({})


def test_a_folder_is_no_checkpoint_file(tmp_path):
    with pytest.raises(RequestError, match="is a folder; allowed: a file, such as step=00000000.ckpt"):
        read(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_found(dtype, odd):
    numbers = torch.linspace(-3, 3, 50, dtype=dtype).view(5, 10)
    assert finite(numbers) and finite(numbers[:0]) and finite(numbers[0, 0])
    numbers[4, 7] = odd
    assert not finite(numbers) and not finite(numbers.t())
