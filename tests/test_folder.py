"""Reading a public folder: what is damaged, missing or leads elsewhere is named, and nothing is run."""

import json
import os
import pickle
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.folder import INDEX, folder_at, read_config, read_json, read_weights

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


@pytest.fixture
def whole(tmp_path):
    """A folder with one file of weights."""
    (tmp_path / "config.json").write_text('{"model_type": "llama", "x": [1, 2.5, null]}')
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def sharded(whole):
    """The same in two shards."""
    (whole / "model.safetensors").unlink()
    for name, tensor in TENSORS.items():
        save_file({name: tensor}, whole / f"{name}.safetensors")
    index(whole, {"a": "a.safetensors", "b": "b.safetensors"})
    return whole


def index(folder, places):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_tensors_are_read_one_by_one(kind, request):
    folder = request.getfixturevalue(kind)
    weights = read_weights(folder)
    assert sorted(weights) == ["a", "b"] and len(weights) == 2
    assert weights.headers["a"].shape == (2, 3) and weights.headers["b"].dtype == "BF16"
    assert all(torch.equal(weights[name], tensor) for name, tensor in TENSORS.items())
    assert read_config(folder)["x"] == [1, 2.5, None]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[1]", "holds a list; allowed: a JSON object"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b'{"a": NaN}', "it holds NaN; allowed: finite numbers"),
        (b'{"a": [-Infinity]}', "it holds -Infinity"),
        (b'{"a": 1e999}', "it holds 1e999"),
        (b'{"a": 1, "a": 2}', "key a stands in it twice"),
        (b"[" * 100_000, "nested too deep"),
        (b"1" * 10_000, "no JSON"),
    ],
)
def test_what_is_no_plain_json_is_refused(tmp_path, content, says):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(RequestError, match="config.json") as error:
        read_config(tmp_path)
    assert says in str(error.value).replace("'", "")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(RequestError, match="1,073,741,824 bytes; allowed: at most"):
        read_config(tmp_path)


def test_a_place_that_is_no_folder(tmp_path):
    with pytest.raises(RequestError, match="does not exist"):
        folder_at(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="is a file"):
        folder_at(tmp_path / "file")
    with pytest.raises(RequestError, match="holds no config.json"):
        folder_at(tmp_path)


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (self.mark,))


def test_a_pickle_is_refused_and_does_not_run(whole):
    (whole / "model.safetensors").unlink()
    mark = whole / "it_ran"
    (whole / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(str(mark))))
    with pytest.raises(RequestError, match="its weights are a pickle .pytorch_model.bin.*import --read_pickle"):
        read_weights(whole)
    assert not mark.exists()


def test_no_weights_at_all(whole):
    (whole / "model.safetensors").unlink()
    with pytest.raises(RequestError, match="holds no weights"):
        read_weights(whole)


def header(text, data=b""):
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 1 << 60),
        header(b"no json"),
        header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}', b"1234"),
        header(b'{"a": {"dtype": "F32", "shape": [999999999, 999999999], "data_offsets": [0, 4]}}', b"1234"),
        header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', b"12345678"),
    ],
    ids=["empty", "noise", "header of an exabyte", "no json", "cut short", "larger than the file", "a hole"],
)
def test_a_damaged_file_is_named(whole, content):
    (whole / "model.safetensors").write_bytes(content)
    with pytest.raises(RunError, match="model.safetensors is damaged: "):
        read_weights(whole)


def test_a_file_that_is_cut_short_is_named(whole):
    data = (whole / "model.safetensors").read_bytes()
    (whole / "model.safetensors").write_bytes(data[:-1])
    with pytest.raises(RunError, match="is damaged"):
        read_weights(whole)


def test_an_index_that_names_a_shard_that_is_not_there(sharded):
    (sharded / "b.safetensors").unlink()
    with pytest.raises(RequestError, match="b.safetensors does not exist"):
        read_weights(sharded)


def test_an_index_that_names_the_wrong_shard(sharded):
    index(sharded, {"a": "b.safetensors", "b": "b.safetensors"})
    with pytest.raises(RequestError, match="b.safetensors: tensor a is not in it"):
        read_weights(sharded)


def test_a_tensor_in_two_shards(sharded):
    save_file(TENSORS, sharded / "b.safetensors")
    with pytest.raises(RequestError, match="tensor a lies in two shards"):
        read_weights(sharded)


@pytest.mark.parametrize("places", [None, [], {"a": 3}, {"a": None}])
def test_an_index_of_another_form(sharded, places):
    index(sharded, places)
    with pytest.raises(RequestError, match="weight_map does not name a file for every tensor"):
        read_weights(sharded)


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "..", "", "sub/a.safetensors", "a\0b", "a\nb"])
def test_an_index_that_leads_elsewhere(sharded, name):
    (sharded / "a.safetensors").rename(sharded.parent / "a.safetensors")
    index(sharded, {"a": name, "b": "b.safetensors"})
    with pytest.raises(RequestError, match="is no name of a file in it|does not exist"):
        read_weights(sharded)


def test_a_link_out_of_the_folder_is_not_followed(whole, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("model.safetensors", "config.json"):
        (whole / name).rename(elsewhere / name)
        (whole / name).symlink_to(elsewhere / name)
    for read in (lambda: read_weights(whole), lambda: read_json(whole / "config.json")):
        with pytest.raises(RequestError, match="a link that leads out of its folder"):
            read()


def test_the_cache_of_a_hub_is_links_into_its_blobs(whole, tmp_path_factory):
    cache = tmp_path_factory.mktemp("models--a--b")
    snapshot = cache / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, name in enumerate(["model.safetensors", "config.json"]):
        (whole / name).rename(cache / "blobs" / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    assert read_config(snapshot)["model_type"] == "llama"
    assert torch.equal(read_weights(snapshot)["a"], TENSORS["a"])


def test_another_reader_agrees(whole):
    found = load_file(whole / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in read_weights(whole).items())
