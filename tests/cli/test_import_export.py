"""`import` and `export` as a user types them: from a public folder to a run and back, and every way it can be wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_small_lm import load
from lit_small_lm.__main__ import main
from lit_small_lm.cli.new_folder import whole_folder
from lit_small_lm.hf import exporting

SMALL = ["--data.seq_len", "16", "--data.batch_size", "4", "--trainer.max_steps", "2", "--trainer.accelerator", "cpu"]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.precision", "32-true", "--trainer.limit_val_batches", "1"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def imported(tmp_path_factory, write_public):
    """A folder with a public folder, and the run that it was imported to."""
    folder = tmp_path_factory.mktemp("imported")
    write_public(folder / "public")
    assert main(["import", str(folder / "public"), str(folder / "run")]) == 0
    return folder


@pytest.fixture
def run(here, imported):
    """A copy of that run; its public folder lies beside it."""
    shutil.copytree(imported, here, dirs_exist_ok=True)
    return Path("run")


def test_an_imported_folder_is_a_run(run, capsys):
    assert {file.name for file in run.iterdir()} == {"checkpoints", "config.yaml", "tokenizer.json", "environment.json"}
    model = load(run)
    assert model.record["imported"]["model_type"] == "llama" and model.net.spec.head == "tied"
    assert main(["generate", "run", "--prompt", "the cat", "--max_new_tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("the cat")


def test_import_in_json(here, public_folder, capsys):
    public_folder("a")
    assert main(["import", "a", "b", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["checkpoint"] == "b/checkpoints/step=00000000.ckpt" and Path(said["checkpoint"]).is_file()
    assert said["model_type"] == "llama" and said["vocab_size"] == 274 and said["dtypes"] == ["F32"]
    assert said["parameters"] == sum(tensor.numel() for tensor in load_file("a/model.safetensors").values())
    assert said["specials"] == {"end": 270, "pad": 271, "mask": 272}


def test_rows_are_added_where_they_are_asked_for(here, public_folder, capsys):
    public_folder("a", vocab_size=271)
    assert main(["import", "a", "b", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["vocab_size"] == 271 and said["specials"] == {"end": 270} and "no free row" in said["notes"][0]
    assert main(["import", "a", "c", "--json", "--new_rows"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["vocab_size"] == 273 and said["specials"] == {"end": 270, "pad": 271, "mask": 272}
    assert load("c").logits(torch.zeros(1, 2, dtype=torch.long)).shape == (1, 2, 273)


def test_without_a_tokenizer_ids_are_scored_and_text_is_refused(here, public_folder, capsys, refused):
    (public_folder("a") / "tokenizer.json").unlink()
    assert main(["import", "a", "b"]) == 0
    assert "note: no tokenizer.json: the model takes and gives token ids, no text" in capsys.readouterr().err
    assert load("b").logits(torch.zeros(1, 2, dtype=torch.long)).shape == (1, 2, 274)
    refused(["generate", "b", "--prompt", "the"], "text: this model has no tokenizer, it takes token ids")
    assert main(["export", "b", "c", "--to", "hf"]) == 0
    assert "note: no tokenizer: IdEncoder cannot be written" in capsys.readouterr().err


@pytest.mark.slow
def test_an_imported_run_is_scored_trained_and_exported(run, tiny_text, capsys):
    source = ["--data.source.path", str(tiny_text)]
    assert main(["test", "--run_dir", "run", *source]) == 0
    assert "is not that of the checkpoint" not in capsys.readouterr().err
    argv = ["fit", "-c", "run/config.yaml", *source, *SMALL, *QUIET]
    assert main([*argv, "--init_from", "run", "--run_dir", "more", "--data.tokenizer", "Bytes"]) == 0
    said = capsys.readouterr().err
    assert "data.tokenizer: Pretrained, that of the checkpoint, goes with its weights" in said
    assert load("more").encoder.specials == load("run").encoder.specials
    before, after = (load(folder).net.state_dict()["embed.weight"] for folder in ("run", "more"))
    assert 0 < (before - after).abs().max() < 0.1
    assert main(["export", "more", "out", "--to", "hf", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["architecture"] == "LlamaForCausalLM" and said["difference"] == 0.0 and said["transformers"] < 1e-4


def test_an_imported_run_has_no_state_to_resume_from(run, capsys):
    assert main(["fit", "--run_dir", "run", "--resume"]) == 2
    assert (
        "holds no optimizer state and no position in the data; --init_from takes its weights only"
        in capsys.readouterr().err.splitlines()[-1]
    )


def test_export_says_what_no_class_has(run, capsys, monkeypatch):
    monkeypatch.setattr(exporting, "fitting", unfit)
    assert main(["export", "run", "out", "--to", "hf"]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines() == ["note: no public class fits: no such part; needs: import lit_small_lm.hf"]
    assert said.out.startswith(
        "out: LitSmallLMForCausalLM, float32; largest difference of a logit 0, with transformers 0"
    )


def unfit(*_):
    raise exporting.Unfit("no such part")


# -------------------------------------------------------------------------------------------------------- bad requests
def edit_config(**changes):
    file = Path("public/config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(**changes):
    file = Path("public/model.safetensors")
    save_file({**load_file(file), **changes}, file)


NORM = "model.norm.weight"


def cut_short():
    file = Path("public/model.safetensors")
    file.write_bytes(file.read_bytes()[:-100])


def pickle_only():
    Path("public/model.safetensors").unlink()
    torch.save({}, "public/pytorch_model.bin")


def leads_elsewhere():
    shutil.move("public/model.safetensors", "elsewhere.safetensors")
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    Path("public/model.safetensors.index.json").write_text(json.dumps(index))


def used():
    Path("out").mkdir()
    Path("out/file").touch()


IMPORT = {
    "no folder": (None, ["none", "out"], 2, ["none does not exist; allowed: a folder with config.json"]),
    "a file": (lambda: Path("file").touch(), ["file", "out"], 2, ["file is a file"]),
    "no config.json": (lambda: Path("empty").mkdir(), ["empty", "out"], 2, ["empty holds no config.json"]),
    "no JSON": (lambda: Path("public/config.json").write_text("{"), [], 2, ["public/config.json: no JSON"]),
    "NaN": (lambda: Path("public/config.json").write_text('{"a": NaN}'), [], 2, ["config.json: it holds NaN"]),
    "no model_type": (lambda: edit_config(model_type=None), [], 2, ["model_type: None; allowed: one of"]),
    "unknown model_type": (lambda: edit_config(model_type="lama"), [], 2, ["'lama' is not", "did you mean llama?"]),
    "a wrong setting": (lambda: edit_config(hidden_act="silo"), [], 2, ["hidden_act", "'silo'", "did you mean silu?"]),
    "a wrong width": (lambda: edit_config(hidden_size=24), [], 2, ["tensor model.", "shape", "config.json makes it"]),
    "too many layers": (lambda: edit_config(num_hidden_layers=2), [], 2, ["layers.1", "is missing (and 8 more)"]),
    "pickle": (pickle_only, [], 2, ["its weights are a pickle (pytorch_model.bin)", "import --read_pickle"]),
    "cut short": (cut_short, [], 1, ["model.safetensors is damaged: "]),
    "leads elsewhere": (leads_elsewhere, [], 2, ["'../elsewhere.safetensors' is no name of a file in it"]),
    "one tensor more": (lambda: edit_weights(x=torch.ones(1)), [], 2, ["tensor x is not one of this class"]),
    "not finite": (lambda: edit_weights(**{NORM: torch.full((16,), torch.nan)}), [], 1, [f"{NORM} holds numbers not"]),
    "no such end": (None, ["public", "out", "--end", "<|endoftxt|>"], 2, ["--end: ", "did you mean <|endoftext|>?"]),
    "OUT is used": (used, [], 2, ["OUT: out is not empty; allowed: a new folder, or an empty one"]),
    "OUT is a file": (lambda: Path("out").touch(), [], 2, ["OUT: out: ", "out is a file"]),
    "OUT is a link": (lambda: Path("out").symlink_to("public"), [], 2, ["OUT: out is "]),
    "OUT is a link to nothing": (lambda: Path("out").symlink_to("none"), [], 2, ["OUT: out is a link"]),
    "OUT below a file": (lambda: Path("f").touch(), ["public", "f/out"], 2, ["OUT: f/out: ", "f is a file"]),
    "no OUT": (None, ["public"], 2, ["required: OUT"]),
    "an option": (None, ["public", "out", "--new_row"], 2, ["--new_row: no such option", "did you mean --new_rows?"]),
}  # fmt: skip


@pytest.mark.parametrize("name", IMPORT)
def test_import_refuses(name, here, public_folder, refused):
    prepare, argv, status, says = IMPORT[name]
    public_folder()
    if prepare:
        prepare()
    refused(["import", *(argv or ["public", "out"])], *says, status=status)


EXPORT = {
    "another format": (None, ["run", "out", "--to", "HFF"], 2, ["--to: 'HFF' is not a known", "did you mean hf?"]),
    "no format": (None, ["run", "out"], 2, ["required: --to"]),
    "a type": (None, ["run", "out", "--to", "hf", "--dtype", "bfloat"], 2, ["--dtype: ", "did you mean bfloat16?"]),
    "a size": (None, ["run", "out", "--to", "hf", "--max_shard_size", "5"], 2, ["--max_shard_size: '5'; allowed: "]),
    "no run": (None, ["none", "out", "--to", "hf"], 2, ["none", "does not exist"]),
    "not a run": (None, ["public", "out", "--to", "hf"], 2, ["(model_type llama); lit-small-lm import makes a run"]),
    "damaged": (
        lambda: Path("x.ckpt").write_bytes(b""), ["x.ckpt", "out", "--to", "hf"], 1, ["x.ckpt is damaged"],
    ),
    "OUT is used": (used, [], 2, ["OUT: out is not empty"]),
    "OUT is the run": (None, ["run", "run", "--to", "hf"], 2, ["OUT: run is not empty"]),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPORT)
def test_export_refuses(name, run, refused):
    prepare, argv, status, says = EXPORT[name]
    if prepare:
        prepare()
    refused(["export", *(argv or ["run", "out", "--to", "hf"])], *says, status=status)


@pytest.mark.parametrize("command", [["import", "public", "out"], ["export", "run", "out", "--to", "hf"]])
def test_a_place_that_cannot_be_written(command, run, monkeypatch, refused):
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    refused(command, "OUT: out: ", "cannot be written to")


def test_nothing_is_left_of_an_export_that_fails(run, monkeypatch, refused):
    right = exporting.writing.write_weights
    other = {"dtype": torch.bfloat16}
    monkeypatch.setattr(exporting.writing, "write_weights", lambda f, t, dtype, size: right(f, t, other["dtype"], size))
    refused(["export", "run", "out", "--to", "hf"], "export: tensor ", "is not read back as it was written", status=1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_folder_is_there_whole_or_not_at_all(here, error):
    with pytest.raises(error), whole_folder(here / "a" / "b") as folder:
        (folder / "file").touch()
        raise error
    assert list(here.iterdir()) == []
    with whole_folder(here / "a" / "b") as folder:
        (folder / "file").write_text("x")
        assert not (here / "a").exists()
    assert [str(file.relative_to(here)) for file in here.rglob("*")] == ["a", "a/b", "a/b/file"]
    assert (here / "a/b/file").stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_a_folder_that_is_there_stays_the_one_it_is(here):
    """The shell may stand in it, or a disk be mounted there."""
    out = here / "a"
    out.mkdir()
    number = out.stat().st_ino
    with pytest.raises(ValueError), whole_folder(out) as folder:
        (folder / "file").touch()
        raise ValueError
    assert list(out.iterdir()) == []
    with whole_folder(out) as folder:
        (folder / "inner").mkdir()
        (folder / "inner/file").write_text("x")
    assert [str(file.relative_to(here)) for file in here.rglob("*")] == ["a", "a/inner", "a/inner/file"]
    assert out.stat().st_ino == number


def _umask():
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask
