"""Completion: the script a shell is given answers without Python; bash is asked for real."""

import shutil
import subprocess

import pytest

from lit_small_lm.__main__ import COMMANDS, main
from lit_small_lm.cli.completion import words_of
from lit_small_lm.cli.lit import roots
from lit_small_lm.discovery import discover

FFN = '''
from dataclasses import dataclass
from lit_small_lm.nn.mlp import MLP
from lit_small_lm.plugin import FFN

@dataclass(frozen=True, kw_only=True)
class CompletedFFN(FFN):
    """Mine; it isn't `quoted` "well": $HOME."""
    flavour: int = 3
    """What it's for: $(touch it_ran) `touch it_ran`"""
    def build(self, site):
        return MLP().build(site)
'''


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The script of every shell, with a plug-in of the user's."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "completed.py").write_text(FFN)
    found = {}
    for shell in ("bash", "zsh", "fish"):
        with pytest.MonkeyPatch.context() as patch, open(folder / shell, "w") as out:
            patch.setattr("sys.stdout", out)
            assert main(["completion", shell, "--plugins", str(folder / "completed.py")]) == 0
        found[shell] = folder / shell
    return found


@pytest.fixture
def bash(scripts, tmp_path):
    """`bash("fit", "--opt")` -> what bash offers for the last word."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")

    def ask(*words):
        code = f'source {scripts["bash"]}; COMP_WORDS=(lit-small-lm "$@"); COMP_CWORD=$#; _lit_small_lm; '
        command = [shutil.which("bash"), "--norc", "-c", f'{code} printf "%s\\n" "${{COMPREPLY[@]}}"', "bash", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""}, timeout=30)
        assert done.stderr == ""
        return done.stdout.split()

    yield ask
    assert list(tmp_path.iterdir()) == []


def test_bash_offers_commands(bash):
    assert bash("") == [*COMMANDS, "--help"]
    assert bash("plu") == ["plugins"]


def test_bash_offers_the_options_of_the_command(bash):
    assert bash("fit", "--trainer.max_s") == ["--trainer.max_steps"]
    assert bash("fit", "--res") == ["--resume"]
    assert bash("validate", "--res") == []
    assert "--top_p" in bash("generate", "--") and "--trainer.max_steps" not in bash("generate", "--")
    assert "--model.shape.dim" in bash("prepare", "--model.shape.")
    assert "--trainer.callbacks.patience" in bash("fit", "--trainer.callbacks.p")


def test_samplers_and_their_options_are_offered(bash, scripts):
    assert {"Autoregressive", "LowConfidence", "SelfSpeculation"} <= set(bash("generate", "--sampler", ""))
    assert bash("generate", "--sampler", "Conf") == ["ConfidenceFactor", "ConfidenceThreshold"]
    assert bash("generate", "--sampler.thr") == ["--sampler.threshold"]
    assert bash("generate", "--sampler.noise", "Cos") == ["CosineNoise"]
    assert "entropy" in bash("generate", "--sampler.by", "")
    assert bash("generate", "--sampler.h") == ["--sampler.help"]
    assert bash("fit", "--sampler") == []
    for shell in ("zsh", "fish"):
        (line,) = [line for line in scripts[shell].read_text().splitlines() if "EntropyBound" in line]
        assert "Remasking" in line


@pytest.mark.parametrize("equals", [[], ["="]])
def test_bash_offers_names_and_choices(bash, equals):
    assert {"CompletedFFN", "GatedMLP", "MLP"} <= set(bash("fit", "--model.backbone.layer.ffn", *equals, ""))
    assert bash("fit", "--model.backbone.layer.ffn", *equals, "G") == ["GatedMLP"]
    assert bash("fit", "--trainer.precision", *equals, "bf") == ["bf16-mixed", "bf16"]
    assert bash("fit", "--trainer.deterministic", *equals, "t") == ["true"]
    assert bash("fit", "--run_dir", *equals, "") == []


def test_bash_offers_what_a_command_is_about(bash):
    assert bash("completion", "") == ["bash", "zsh", "fish"]


def test_every_option_is_in_every_script(scripts):
    discover()
    names = [word.name for word in words_of(roots())]
    assert len(names) > 150 and len(set(names)) == len(names)
    for shell, file in scripts.items():
        text = file.read_text()
        missing = [name for name in names if (f"-l {name[2:]} " if shell == "fish" else name) not in text]
        assert missing == [] and "touch it_ran`" not in text and "$(touch" not in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_can_read_its_script(scripts, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    done = subprocess.run([shell, "-n", str(scripts[shell])], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_shell_is_refused(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert capsys.readouterr().err.startswith("error: shell: 'tcsh' is not a known choice; known: bash, fish, zsh")
