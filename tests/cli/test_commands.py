"""The commands as a user types them: exit status, what is printed, what is left behind."""

import json
import os
import subprocess
import sys

import pytest
import torch

from lit_small_lm import load
from lit_small_lm.__main__ import main
from lit_small_lm.checkpoint import write
from lit_small_lm.cli.report import summary

PLUGIN = '''
"""A scheme of the user's."""
from dataclasses import dataclass
from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.nn.residual import PrePath
from lit_small_lm.plugin import NormScheme


@dataclass(frozen=True, kw_only=True)
class {name}(NormScheme):
    """Mine."""

    def build(self, site):
        return PrePath(RMSNorm().build(site.dim), 0.5)

    def close(self, dim):
        return RMSNorm().build(dim)
'''


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["fit", *tiny, "--run_dir", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(("argv", "status"), [(["--help"], 0), (["--version"], 0), (["fitt"], 2), ([], 0)])
def test_help_version_and_a_mistyped_command_do_without_torch(argv, status):
    code = f"import sys; from lit_small_lm.__main__ import main; s = main({argv!r}); print('torch' in sys.modules, s)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == f"False {status}"


def test_a_mistyped_command_names_the_nearest(capsys):
    assert main(["tarin"]) == 2
    assert main(["genrate"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[0].startswith("error: 'tarin' is not a command; known: fit, validate, test, prepare, generate")
    assert error[1].endswith("did you mean generate?")


def test_a_run_directory_holds_everything(run):
    assert {file.name for file in run.iterdir()} >= {
        "config.yaml", "environment.json", "metrics.jsonl", "tokenizer.json", "tensorboard", "checkpoints",
    }  # fmt: skip
    environment = json.loads((run / "environment.json").read_text())
    assert environment["command"][0] == "lit-small-lm"
    assert environment["packages"]["torch"] == torch.__version__
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4]
    assert lines[-1]["val/bits_per_byte"] == pytest.approx(lines[-1]["val/loss"] / 0.6931471805599453, rel=0.01)
    assert all({"step", "tokens", "seconds"} <= set(line) for line in lines)
    assert lines[-1]["tokens"] == 4 * 4 * 16


def test_test_scores_the_whole_split_and_writes_it_down(run, tiny_text, capsys):
    assert main(["test", "--run_dir", str(run)]) == 0
    found = json.loads((run / "test.json").read_text())
    from lit_small_lm.data.sources import TextFiles
    from lit_small_lm.data.splits import Splits, full_documents

    source = TextFiles(path=str(tiny_text))
    splits = Splits.of(source)
    documents = [d for d in full_documents(source) if any(split == "test" for split, _ in splits.pieces(d))]
    size = sum(len(document.text.encode()) for document in documents)
    assert (found["documents"], found["bytes"], found["tokens"]) == (len(documents), size, size + len(documents))
    assert found["likelihood"] == "exact"
    assert found["bits_per_byte_standard_error"] > 0

    model, nats = load(run), 0.0  # the same by hand: windows of 16 targets, documents apart
    end = model.encoder.specials.end
    stream = [i for d in documents for i in (end, *model.encoder.encode([d.text])[0])] + [end]
    for at in range(0, len(stream) - 1, 16):
        window = stream[at : at + 17]
        starts = [
            0,
            *(i for i in range(1, len(window) - 1) if window[i] == model.encoder.specials.end),
            len(window) - 1,
        ]
        for first, last in zip(starts, starts[1:], strict=False):
            logits = model.logits(torch.tensor([window[first:last]])).double()
            targets = torch.tensor([window[first + 1 : last + 1]])
            nats -= logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).sum().item()
    assert found["nats_per_token"] == pytest.approx(nats / (len(stream) - 1), rel=1e-5)


def test_validate_scores_a_checkpoint_by_name(run, capsys):
    checkpoint = run / "checkpoints" / "step=00000002.ckpt"
    assert main(["validate", "--ckpt_path", str(checkpoint)]) == 0
    assert "checkpoint of step 2" in capsys.readouterr().err
    assert main(["validate"]) == 2


def test_generate_is_a_function_of_the_seed(run, capsys):
    def text(*options):
        assert main(["generate", str(run), "--prompt", "the ", "--max_new_tokens", "12", *options]) == 0
        return capsys.readouterr().out

    assert text() == text() != text("--seed", "1")
    assert text().startswith("the ")
    record = json.loads(text("--json"))
    assert text() == record["prompt"] + record["text"] + "\n"
    assert text("--temperature", "0") == text("--top_k", "1", "--seed", "5")


def test_generate_without_a_run(tmp_path, capsys):
    assert main(["generate", str(tmp_path / "none")]) == 2
    assert main(["generate", str(tmp_path)]) == 2
    assert "no checkpoint" in capsys.readouterr().err.splitlines()[-1]


def test_plugins_lists_kind_name_origin_and_first_line(capsys):
    assert main(["plugins"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:3] == ["NormScheme", "LayerNormScaling", "built-in"] for line in lines)
    assert any(line.split()[:3] == ["NormScheme", "LayerScale", "plugin"] for line in lines)
    assert main(["plugins", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(set(record) == {"kind", "name", "class_path", "source", "digest"} for record in records)


def test_a_plugin_file_is_selected_recorded_and_needed_again(tmp_path, tiny, capsys):
    file = tmp_path / "my_scheme.py"
    file.write_text(PLUGIN.format(name="HalfOfPreNorm"))
    argv = ["fit", *tiny, "--plugins", str(file)]
    assert main([*argv, "--model.backbone.norm", "HalfOfPreNorm", "--run_dir", str(tmp_path / "run")]) == 0
    (recorded,) = load(tmp_path / "run", plugins=[file]).record["plugins"]
    assert recorded["name"] == "HalfOfPreNorm"
    assert recorded["source"] == f"file {file}"
    code = f"import lit_small_lm; lit_small_lm.load({str(tmp_path / 'run')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "it needs plug-in HalfOfPreNorm" in done.stderr.splitlines()[-1]


def test_two_plugins_of_one_name_are_refused_naming_both_files(tmp_path, cli):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(PLUGIN.format(name="Twin"))
    done = cli("plugins", "--plugins", tmp_path)
    assert done.rc == 2
    assert str(tmp_path / "a.py") in done.stderr
    assert str(tmp_path / "b.py") in done.stderr


def test_a_broken_plugin_is_a_warning_and_the_rest_load(tmp_path, cli):
    (tmp_path / "broken.py").write_text("raise ValueError('no good')")
    (tmp_path / "sound.py").write_text(PLUGIN.format(name="SoundOne"))
    done = cli("plugins", "--plugins", tmp_path)
    assert done.rc == 0
    assert "ValueError" in done.stderr
    assert f"{tmp_path / 'broken.py'}:1" in done.stderr
    assert "SoundOne" in done.stdout


WRONG = {
    "an option": ["--trainer.max_stepz", "4"],
    "a class": ["--model.backbone.norm", "LayerNormScalin"],
    "a value": ["--optim.lr", "fast"],
    "a range": ["--optim.lr", "-1"],
    "not finite": ["--optim.lr", "nan"],
    "widths": ["--model.shape.n_heads", "3"],
    "a Canon letter": ["--model.backbone.layer.canon_at", "AX"],
    "a path": ["--data.source.path", "nowhere"],
    "shares": ["--trainer.accumulate_grad_batches", "3"],
    "a config": ["-c", "nowhere.yaml"],
    "positions": ["--model.backbone.positions", "Learned", "--model.backbone.positions.length", "8"],
    "a device": ["--trainer.accelerator", "gpu", "--trainer.devices", "99"],
    "a strategy": ["--trainer.strategy", "none"],
    "a callback": ["--trainer.callbacks", "EarlyStoping"],
    "a schedule": ["--schedule.warmup", "1.5"],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_request_ends_with_one_line_and_nothing_new(wrong, tmp_path, tiny, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["fit", *tiny, *WRONG[wrong]]
    assert main([*argv, "--run_dir", "run"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) <= 5
    assert error[-1].startswith("error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("size", "says"), [(0, "holds no text"), (40, "training tokens; one batch of")])
def test_too_little_text_is_said(size, says, tmp_path, capsys, tiny):
    text = tmp_path / "text.txt"
    text.write_text("x" * size)
    assert main(["fit", *tiny, "--data.source.path", str(text), "--run_dir", str(tmp_path / "run")]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_a_tiny_file_trains_and_a_smaller_vocabulary_is_said(tmp_path, capsys, tiny):
    text = tmp_path / "text.txt"
    text.write_text("one small file is enough to begin with, and more of it is better\n" * 30)
    bpe = ["--data.tokenizer", "BPE", "--data.tokenizer.vocab_size", "5000", "--trainer.enable_progress_bar", "true"]
    assert main(["fit", *tiny, *bpe, "--data.source.path", str(text), "--run_dir", str(tmp_path / "run")]) == 0
    assert "of the 5000 ids asked for" in capsys.readouterr().err


def test_a_config_imports_nothing(tmp_path, cli, tiny):
    (tmp_path / "foreign.py").write_text("open('it_ran', 'w').close()\nclass Thing: pass\n")
    config = tmp_path / "config.yaml"
    config.write_text("trainer:\n  callbacks:\n  - class_path: foreign.Thing\n")
    argv = ["fit", *tiny, "-c", config]
    done = cli(*argv, env={"PYTHONPATH": str(tmp_path)})
    assert done.rc == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "it_ran").exists()


def test_a_broken_plugin_package_and_a_name_used_in_two_kinds_hurt_nobody(tmp_path, cli, run):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "__init__.py").write_text("import sys\nsys.exit(3)")
    (tmp_path / "noise.py").write_text(
        "from dataclasses import dataclass\nfrom lit_small_lm.plugin import Noise\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Bytes(Noise):\n    def alpha(self, t): return 1 - t\n"
        "    def weight(self, t): return t\n"
    )
    done = cli("generate", run, "--plugins", tmp_path, "--max_new_tokens", "2")
    assert done.rc == 0, done.stderr
    assert "warning: plug-in" in done.stderr


@pytest.mark.parametrize("name", ["", "file", "file/below", "foreign"])
def test_a_directory_that_cannot_be_used_is_refused(name, tmp_path, tiny, capsys):
    (tmp_path / "file").write_text("text")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.yaml").write_text("mine: true")
    folder = str(tmp_path / name) if name else ""
    assert main(["fit", *tiny, "--run_dir", folder]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --run_dir: ")
    assert (tmp_path / "foreign" / "config.yaml").read_text() == "mine: true"


def test_few_positions_do_not_spoil_a_finished_run(tmp_path, tiny):
    few = ["--model.backbone.positions", "Learned", "--model.backbone.positions.length", "16"]
    assert main(["fit", *tiny, *few, "--run_dir", str(tmp_path / "run")]) == 0


def test_lightnings_logger_may_be_switched_off(tmp_path, tiny):
    argv = ["fit", *tiny, "--trainer.logger", "false"]
    assert main([*argv, "--run_dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_help_of_a_slot_needs_nothing_else(cli):
    done = cli("fit", "--optim.help", "AdamW")
    assert done.rc == 0
    assert "weight_decay" in done.stdout


def test_weights_alone_are_scored_but_not_gone_on_with(run, tmp_path, capsys):
    whole = torch.load(run / "checkpoints" / "step=00000004.ckpt", weights_only=True)
    keys = ("state_dict", "lit_small_lm", "pytorch-lightning_version", "loops")
    weights = tmp_path / "weights.ckpt"
    write({key: whole[key] for key in keys}, weights)
    assert main(["fit", "--branch_from", str(weights), "--trainer.max_steps", "9"]) == 2
    assert "--init_from takes its weights only" in capsys.readouterr().err.splitlines()[-1]
    assert main(["validate", "--ckpt_path", str(weights)]) == 0


def test_a_packaged_config_is_found_anywhere_but_is_no_text(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.max_steps", "1", "--run_dir", "run"]
    assert main(["fit", "-c", "configs/demo.yaml", *short, "--data.source.path", "demo.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: data.source.path: demo.yaml does not exist")


def test_a_run_whose_time_is_up_does_not_go_on_for_nothing(tmp_path, tiny, capsys):
    run_dir = ["--run_dir", str(tmp_path / "run")]
    endless = ["--trainer.max_steps", "1000000", "--trainer.max_time", "00:00:00:01", "--schedule.decay", "0"]
    assert main(["fit", *tiny, *endless, "--checkpoints.every_n_steps", "1000000", *run_dir]) == 0
    capsys.readouterr()
    assert main(["fit", "--resume", *run_dir]) == 2
    assert "error: trainer.max_time: 1 s in all; the run took " in capsys.readouterr().err.splitlines()[-1]
    assert main(["fit", "--resume", "--trainer.max_time", "null", "--trainer.max_steps", "2", *run_dir]) == 2


def test_scores_that_are_no_numbers_are_summed_up(tmp_path):
    """JSON has no word for them: they are text there."""
    score = {"val/bits_per_byte": "nan", "val/bits_per_byte_standard_error": "nan", "val/documents": 3.0}
    lines = [{"step": step, "tokens": 64, "seconds": 1.0, **score} for step in (4, 8)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "validation nan bits per byte" in (said := summary(tmp_path, "exact")) and "(step 4: nan)" in said


def test_a_reader_that_goes_away_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "lit_small_lm", "plugins"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_messages_on_a_full_disk_are_lost_and_nothing_else(tmp_path, tiny, monkeypatch):
    """The status at the exit is that of the command, too."""
    for argv, status in ((["fit", *tiny, "--run_dir", str(tmp_path / "run")], 0), (["fit", "--nonsense"], 2)):
        with open("/dev/full", "w") as full, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", full)
            assert main(argv) == status
    assert load(tmp_path / "run").record["step"] == 4
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "lit_small_lm", "nonsense"]
        assert subprocess.run(command, stderr=full).returncode == 2
