"""Old weights: tensors are taken from a pickle, and nothing in it runs, whatever the environment says."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_small_lm import load
from lit_small_lm.__main__ import main
from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.hf.pickles import read_pickles


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("it_ran",))


@pytest.fixture(autouse=True)
def forced(tmp_path, monkeypatch):
    """An environment that asks torch to unpickle whatever there is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    yield
    assert not Path("it_ran").exists()


def test_the_payload_would_run():
    pickle.loads(pickle.dumps(Bomb()))  # noqa: S301 (to show that it does something)
    Path("it_ran").rmdir()


def test_weights_from_a_pickle_are_those_of_the_safetensors(public_folder, capsys):
    folder = public_folder("public")
    assert main(["import", "public", "a"]) == 0
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert main(["import", "public", "b"]) == 2
    assert "import --read_pickle takes tensors and nothing else" in capsys.readouterr().err
    assert main(["import", "public", "b", "--read_pickle"]) == 0
    wanted, found = (load(name).net.state_dict() for name in "ab")
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize("content", [{"a": Bomb()}, Bomb(), [Bomb()]])
def test_a_payload_is_refused(content, capsys):
    Path("public").mkdir()
    torch.save(content, "public/pytorch_model.bin")
    with pytest.raises(RunError, match="was refused"):
        read_pickles(Path("public"))
    for file in ("public/pytorch_model.bin", "raw.pt"):
        Path("raw.pt").write_bytes(pickle.dumps(content))
        assert main(["generate", file]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("error: checkpoint: ") and ("refused" in said or "damaged" in said)
        assert "weights_only" not in said and "TORCH_" not in said and "safe_globals" not in said


@pytest.mark.parametrize(
    ("content", "says"),
    [([1], "holds a list"), ({"a": 1}, "a is a int"), ({1: torch.ones(1)}, "1 is a Tensor")],
)
def test_only_tensors_by_name_are_taken(content, says):
    torch.save(content, "pytorch_model.bin")
    with pytest.raises(RequestError, match=says):
        read_pickles(Path())


def test_no_shard_lies_elsewhere():
    Path("in").mkdir()
    Path("in/pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../x.bin"}}')
    torch.save({"a": torch.ones(1)}, "x.bin")
    with pytest.raises(RequestError, match="no name of a file"):
        read_pickles(Path("in"))


@pytest.mark.parametrize("place", ["https://host/x.ckpt", "http://host/run", "s3://bucket/run", "hf://name/model"])
@pytest.mark.parametrize("command", [["generate"], ["test", "--ckpt_path"], ["fit", "--init_from"]])
def test_an_address_is_no_checkpoint(place, command, capsys):
    assert main([*command, place]) == 2
    assert "is an address; allowed: a file or folder of this machine" in capsys.readouterr().err.splitlines()[-1]
