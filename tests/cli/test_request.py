"""Every mistyped option, class or value is named in one line, and what is right is spelled out for the parser."""

import abc
from pathlib import Path
from typing import Any, Literal

import pytest
from lightning.pytorch import LightningDataModule, Trainer

from lit_small_lm.backbone import BackboneSpec
from lit_small_lm.cli.request import Request, check_request, request_lines
from lit_small_lm.cli.schema import group, options_of, plain, slot
from lit_small_lm.data.datamodule import TokenData
from lit_small_lm.discovery import discover
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Optim, Spec
from lit_small_lm.spec import class_path
from lit_small_lm.training import diffusion  # noqa: F401  (a model that may be named)
from lit_small_lm.training.lit import AutoregressiveLM, LanguageModule
from lit_small_lm.training.optim import AdamW

MODEL = ["--model", "AutoregressiveLM"]
NORM = "model.init_args.backbone.init_args.norm"
BOUNDS = {"max_steps": {"low": -1}, "accumulate_grad_batches": {"low": 1}, "accelerator": {"choices": ("auto", "cpu")}}
ROOTS = {
    "model": slot(LanguageModule),
    "data": group(TokenData, {"seq_len": {"low": 1}}),
    "trainer": group(Trainer, BOUNDS),
    "optim": slot(Optim, AdamW()),
    "seed_everything": plain(int, 0, {"low": 0}),
    "run_dir": plain(str | None, None),
    "resume": plain(bool, False, flag=True),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and all short names known."""
    discover()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(*argv: str, **kwargs: Any) -> Request:
    return check_request(argv, ROOTS, **kwargs)


def refused(*argv: str, **kwargs: Any) -> list[str]:
    """The lines a refused request prints."""
    with pytest.raises(RequestError) as caught:
        ask(*argv, **kwargs)
    lines = request_lines(caught.value)
    assert lines[-1].startswith("error: ")
    assert len(lines) <= 5 and max(map(len, lines)) <= 300
    assert all(line.isprintable() for line in lines)
    return lines


def last(*argv: str, **kwargs: Any) -> str:
    return refused(*argv, **kwargs)[-1].removeprefix("error: ")


def write(name: str, text: str) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return name


def at(request: Request, path: str) -> Any:
    value: Any = request.tree
    for key in path.split("."):
        value = value[key]
    return value


# --------------------------------------------------------------------------------------------------- names, as flags
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--trainer.max_epoch", "3"], ["--trainer.max_epoch:", "did you mean --trainer.max_epochs?"]),
        (["--model.shape.dmi", "3"], ["'dmi' is not an option of FixedShape", "did you mean --model.shape.dim?"]),
        (["--trianer.max_steps=3"], ["'trianer'", "did you mean --trainer.max_steps?"]),
        (["--trainer.dim", "3"], ["not an option of Trainer", "did you mean --model.shape.dim?"]),
        (["--max_steps", "3"], ["did you mean --trainer.max_steps?"]),
        (["--confg", "x.yaml"], ["did you mean --config?"]),
        (["--brnch_from", "x"], ["did you mean --branch_from?"]),
        (["--trainer.max_steps.high", "3"], ["trainer.max_steps takes a value"]),
        (["trainer.max_steps", "3"], ["begin with --", "did you mean --trainer.max_steps?"]),
        (["-trainer.max_steps=3"], ["did you mean --trainer.max_steps?"]),
        (["stray"], ["stray: options begin with --"]),
        (["--trainer.max_steps"], ["--trainer.max_steps: no value; allowed: a whole number"]),
        (["--trainer.max_steps", "--optim.lr", "1"], ["--trainer.max_steps: no value"]),
        (["--trainer.max_steps+=3"], ["only a list can be added to"]),
        (["-c"], ["-c: no value; allowed: a YAML file"]),
    ],
)
def test_a_mistyped_flag_is_named_with_the_right_one(argv, expected):
    line = last(*MODEL, *argv, beside=["branch_from"])
    assert all(part in line for part in expected), line


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["LayerNormScalin"], "; did you mean LayerNormScaling?"),
        (["RMSNorm"], "'RMSNorm' is a Norm, not NormScheme; known: "),
        (["AutoregressiveLM"], "'AutoregressiveLM' is a LanguageModule, not NormScheme"),
        (["os.system"], "'os.system' is not a known NormScheme"),
        (["null"], "'null' is not a known NormScheme"),
        (["families/none.yaml"], "'families/none.yaml' does not exist"),
    ],
)
def test_a_class_that_is_unknown_or_of_another_kind(argv, expected):
    line = last(*MODEL, "--model.backbone.norm", *argv)
    assert line.startswith("--model.backbone.norm: ") and expected in line


def test_options_are_checked_against_the_class_chosen_before():
    chosen = [*MODEL, "--model.backbone.norm.norm", "LayerNorm"]
    ask(*chosen, "--model.backbone.norm.norm.shift", "none")
    assert "'shift' is not an option of RMSNorm" in last(*MODEL, "--model.backbone.norm.norm.shift", "none")
    assert "'shift' is not an option of RMSNorm" in last(
        *chosen, "--model.backbone.norm.norm", "RMSNorm", "--model.backbone.norm.norm.shift", "none"
    )


def test_the_model_has_to_be_chosen_first():
    assert "choose a LanguageModule first, with --model" in last("--model.shape.dim", "8", *MODEL)
    assert last() == "--model: not given; allowed: AutoregressiveLM, DiffusionLM or a YAML file"


# ------------------------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model.shape.dim", "8.5", "8.5; allowed: a whole number, at least 1"),
        ("model.shape.dim", "1e2", "1e2; allowed: a whole number"),
        ("model.shape.dim", "true", "true; allowed: a whole number"),
        ("model.shape.dim", "wide", "'wide'; allowed: a whole number"),
        ("model.shape.dim", "-3", "-3; allowed: a whole number, at least 1"),
        ("model.shape.dim", "", "nothing; allowed: a whole number"),
        ("trainer.inference_mode", "1", "1; allowed: true or false"),
        ("trainer.max_steps", "-5", "-5; allowed: a whole number, at least -1"),
        ("trainer.accumulate_grad_batches", "0", "0; allowed: a whole number, at least 1"),
        ("trainer.precision", "bf16-mixd", "did you mean bf16-mixed?"),
        ("trainer.accelerator", "cpuu", "allowed: one of auto, cpu; did you mean cpu?"),
        ("model.backbone.head", "tide", "'tide'; allowed: one of tied, untied; did you mean tied?"),
        ("optim.lr", "-1", "-1; allowed: a number, above 0"),
        ("optim.lr", "fast", "'fast'; allowed: a number"),
        ("model.backbone", "{norm: {norm: {eps: 0}}}", "model.backbone.norm.norm.eps: 0; allowed: a number, above 0"),
        ("model.backbone", "{norm: ", "not valid YAML"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(key, value, expected):
    line = last(*MODEL, f"--{key}={value}")
    assert line.startswith(f"--{key}: ") and expected in line


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", ".nan", ".inf", "-.inf", "1e999"])
@pytest.mark.parametrize("key", ["optim.lr", "trainer.limit_val_batches"])
def test_no_number_may_be_infinite(key, value):
    assert "is not finite" in last(*MODEL, f"--{key}={value}")
    number = {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}.get(value, value)
    group_name, name = key.split(".")
    text = f"class_path: AdamW\n  init_args: {{{name}: {number}}}" if group_name == "optim" else f"{name}: {number}"
    assert f"c.yaml:{3 if group_name == 'optim' else 2}: {key}: " in last(
        *MODEL, "-c", write("c.yaml", f"{group_name}:\n  {text}\n")
    )


def test_right_values_arrive_with_their_type():
    tree = ask(
        *MODEL,
        *(
            "--optim.lr",
            "1e-3",
            "--trainer.max_steps",
            "-1",
            "--trainer.precision",
            "16",
            "--trainer.devices",
            "[0, 1]",
        ),
        *("--model.shape.n_kv_heads", "null", "--run_dir", "5", "--resume", "--model.backbone.pattern+=layer"),
        *("--trainer.max_time", "00:01:00:00"),
    ).tree
    assert tree["optim"]["init_args"]["lr"] == 1e-3
    assert tree["trainer"] == {"max_steps": -1, "precision": 16, "devices": [0, 1], "max_time": "00:01:00:00"}
    assert tree["model"]["init_args"]["shape"]["init_args"]["n_kv_heads"] is None
    assert tree["model"]["init_args"]["backbone"]["init_args"]["pattern"] == ["layer", "layer"]
    assert (tree["run_dir"], tree["resume"]) == ("5", True)


# --------------------------------------------------------------------------------------------------------------- YAML
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "c.yaml: is empty"),
        ("# a comment\n", "c.yaml: is empty"),
        ("- a\n", "c.yaml:1: a list; allowed: a mapping"),
        ("trainer: [1,\nmodel: x\n", "c.yaml:3: not valid YAML"),
        (
            "trainer:\n  max_steps: 1\n  max_steps: 2\n",
            "c.yaml:3: max_steps: given twice in one mapping, on lines 2 and 3",
        ),
        (
            "data: !!python/object/apply:os.system [touch x]\n",
            "c.yaml:1: tag !!python/object/apply:os.system is refused",
        ),
        ("data.source: x\n", "c.yaml:1: data.source: dotted keys are refused in YAML; nest it: data: {source: ...}"),
        ("optim: {class_path: AdamW, init_args: {a.b: 1}}\n", "c.yaml:1: a.b: dotted keys"),
        (
            "optim:\n  class_path: a.yaml\n  init_args: {lr: 1}\n",
            "c.yaml:2: optim: class_path names a file, and one YAML",
        ),
        (
            "optim:\n  class_path: AdamW\n  lr: 1\n",
            "c.yaml:3: optim.lr: stands beside class_path; put it into init_args",
        ),
        (
            "optim:\n  class_path: AdamV\n",
            "c.yaml:2: optim: 'AdamV' is not a known Optim; known: AdamW, Muon; did you mean AdamW?",
        ),
        ("optim: {init_args: {lrr: 1}}\n", "c.yaml:1: optim.lrr: 'lrr' is not an option of AdamW"),
        ("optim: [AdamW]\n", "c.yaml:1: optim: a list; allowed: AdamW, Muon or a YAML file"),
        ("trainer:\n  dim: 4\n", "c.yaml:2: trainer.dim: 'dim' is not an option of Trainer"),
        ("trainer:\n  dim: 4\n", "it belongs under model.shape"),
        ("trainer:\n", "c.yaml:1: trainer: nothing; allowed: a mapping"),
        ("data: {cache_dir: 5}\n", "c.yaml:1: data.cache_dir: 5; allowed: text or null"),
        ("data: {seq_len: true}\n", "c.yaml:1: data.seq_len: true; allowed: a whole number, at least 1"),
        ("data: {source: other.yaml}\n", "c.yaml:1: data.source: 'other.yaml' does not exist"),
        ("x: &a [*a]\n", "c.yaml:1: an anchor contains itself"),
        ("config: c.yaml\n", "c.yaml:1: config: a file that includes itself: c.yaml -> c.yaml"),
    ],
)
def test_a_fault_in_a_file_is_named_with_its_line(text, expected):
    assert expected in last(*MODEL, "-c", write("c.yaml", text))
    assert not Path("x").exists()


def test_a_file_that_cannot_be_read(here):
    assert last("-c", "none.yaml") == (
        f"-c: 'none.yaml' does not exist; allowed: a YAML file (looked for {here / 'none.yaml'})"
    )
    Path("c.yaml").write_bytes(b"data: \xff\n")
    assert last("-c", "c.yaml").startswith("c.yaml: byte 6 (0xff) is not UTF-8")
    Path("d.yaml").mkdir()
    assert "is a directory" in last("-c", "d.yaml")


def test_files_that_include_each_other_show_the_chain():
    write("a.yaml", "norm: {norm: parts/b.yaml}\n")
    write("parts/b.yaml", "../a.yaml\n")
    line = last(*MODEL, "--model.backbone", "a.yaml")
    assert line.startswith("parts/b.yaml:1: ") and "a.yaml -> parts/b.yaml -> ../a.yaml" in line


def test_all_faults_are_named_at_once():
    write("c.yaml", "trainer:\n  max_steps: no\n  max_epoch: 2\noptim: {init_args: {lr: -1, bet1: 3}}\ndata: 3\n")
    lines = refused(*MODEL, "-c", "c.yaml")
    assert len(lines) == 5
    assert {line.removeprefix("error: ").split(": ")[1] for line in lines} == {
        "trainer.max_steps", "trainer.max_epoch", "optim.lr", "optim.bet1", "data",
    }  # fmt: skip
    many = refused(*MODEL, *(f"--trainer.x{i}=1" for i in range(9)))
    assert len(many) == 5
    assert many[0].startswith("... and 5 more: --trainer.x0, --trainer.x1, ")


def test_terminal_escapes_do_not_reach_the_terminal():
    assert r"--data.so\x1b[31m\nurce" in last(*MODEL, "--data.so\x1b[31m\nurce", "x")
    assert r"'\x1b[2J'" in last(*MODEL, "--model.backbone.norm", "\x1b[2J")
    write("c.yaml", 'optim: "\\e[2J\\nx"\n')
    assert r"'\x1b[2J\nx'" in last(*MODEL, "-c", "c.yaml")


def test_lines_of_any_error_fit():
    lines = request_lines(ValueError("\n".join(["x" * 900] * 30)))
    assert len(lines) == 5 and max(map(len, lines)) == 300 and lines[-1].startswith("error: xxx")


# ------------------------------------------------------------------------------------------------------------ outcome
def test_later_wins_and_references_are_relative_to_the_naming_file():
    write("families/a.yaml", "norm: {class_path: LayerNormScaling, init_args: {norm: parts/n.yaml}}\nhead: untied\n")
    write("families/parts/n.yaml", "class_path: LayerNorm\ninit_args: {eps: 1e-3}\n")
    write("c.yaml", "model: {class_path: AutoregressiveLM, init_args: {backbone: families/a.yaml}}\n")
    request = ask("-c", "c.yaml")
    assert at(request, NORM + ".class_path").endswith(".LayerNormScaling")
    norm = at(request, NORM + ".init_args.norm.init_args")
    assert norm == {"eps": 1e-3, "shift": "bias", "gain": "w", "start": 1.0}
    later = ask("-c", "c.yaml", "--model.backbone.norm.norm.eps", "1e-4", "-c", write("d.yaml", "seed_everything: 3\n"))
    assert at(later, NORM + ".init_args.norm.init_args.eps") == 1e-4
    assert at(later, "seed_everything") == 3


def test_a_replaced_class_keeps_what_was_asked_for_and_leaks_no_default():
    ffn = "model.init_args.backbone.init_args.layer.init_args.ffn.init_args"
    assert at(ask(*MODEL, "--model.backbone.layer.ffn", "MLP"), ffn)["activation"] == "gelu_tanh"
    asked = [*MODEL, "--model.backbone.layer.ffn.activation", "relu", "--model.backbone.layer.ffn", "MLP"]
    assert at(ask(*asked), ffn)["activation"] == "relu"
    assert ask(*asked).notices == []


def test_what_is_dropped_is_noted():
    dropped = ["--model.backbone.norm.norm", "LayerNorm", "--model.backbone.norm.norm.shift", "none"]
    notices = ask(*MODEL, *dropped, "--model.backbone.norm.norm", "RMSNorm").notices
    assert notices == ["--model.backbone.norm.norm.shift: dropped, model.backbone.norm.norm is now RMSNorm"]
    write("b.yaml", "norm: PostNorm\n")
    notices = ask(*MODEL, "--model.backbone.head", "untied", "--model.backbone", "b.yaml").notices
    assert notices == ["--model.backbone.head: dropped, model.backbone is now b.yaml"]


def test_a_file_replaces_an_earlier_file_without_a_word():
    write("a.yaml", "head: untied\n")
    write("b.yaml", "norm: PostNorm\n")
    request = ask(*MODEL, "--model.backbone", "a.yaml", "--model.backbone", "b.yaml")
    assert at(request, "model.init_args.backbone.init_args.head") == "tied"
    assert request.notices == []


def test_a_base_configuration_lies_below_everything():
    base = "model: {class_path: lit_small_lm.AutoregressiveLM}\noptim: {class_path: AdamW, init_args: {lr: 0.5}}\n"
    request = ask("--optim.beta1", "0.5", base=base)
    assert at(request, "optim.init_args.lr") == 0.5 and at(request, "optim.init_args.beta1") == 0.5
    assert last(base="trainer: {foo: 1}\n").startswith("configuration of the run:1: trainer.foo: ")


def test_what_is_not_looked_into_is_passed_on():
    callbacks = ["--trainer.callbacks+=Timer", "--trainer.callbacks.duration=5"]
    request = ask(*MODEL, *callbacks, "--trainer.logger", "false", "--print_config")
    assert request.passed == [*callbacks, "--print_config"] and request.tree["trainer"] == {"logger": False}
    assert request.spelled("fit")[:2] == ["fit", "--config"] and request.spelled("fit")[3:] == request.passed
    assert ask("--nonsense", "--help").spelled("test") == ["test", "--help"]


def test_a_request_that_is_wholly_known_is_handed_on_as_plain_data():
    request = ask(*MODEL, "--trainer.accelerator", "cpu")
    assert request.spelled("fit") == {"subcommand": "fit", "fit": request.tree}
    assert request.tree["trainer"] == {"accelerator": "cpu"}


def test_the_parser_reads_the_outcome_as_it_was_meant():
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(subclasses_enabled=[Spec])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LanguageModule, "model")
    parser.add_class_arguments(TokenData, "data")
    layers = '{"local": {"canon_at": "A"}}'
    argv = [*MODEL, "--model.backbone.more_layers", layers, "--model.backbone.more_layers.local.ffn", "MLP"]
    request = ask(*argv, "--model.shape.n_kv_heads", "null", "--data.source.path", "a: {b} % é\n")
    parsed = parser.instantiate(parser.parse_object(request.spelled("fit")["fit"]))
    meant = at(request, "model.init_args.backbone")
    assert parsed.model.backbone == BackboneSpec.from_dict(meant)
    assert parsed.model.backbone.more_layers["local"].ffn.activation == "gelu_tanh"
    assert parsed.data.source.path == "a: {b} % é\n"


# ------------------------------------------------------------------------------------------------------------- schema
class Clock(abc.ABC):
    """A kind that is no Spec."""

    @abc.abstractmethod
    def tick(self) -> None: ...


class Countdown(Clock):
    """A class with an option that has no default."""

    def __init__(self, horizon: int, style: Literal["a", "b"] = "a") -> None:
        self.horizon, self.style = horizon, style

    def tick(self) -> None: ...


class Wider(LightningDataModule):
    """Passes on what it does not name."""

    def __init__(self, extra: int = 1, **kwargs: Any) -> None:
        super().__init__()


class Widest(Wider):
    def __init__(self, more: str = "x", **kwargs: Any) -> None:
        super().__init__(**kwargs)


def test_options_are_found_by_looking_at_the_class():
    assert list(options_of(Widest)) == ["more", "extra"]
    assert set(options_of(AutoregressiveLM)) == {"backbone", "shape"}


def test_an_option_without_a_default_has_to_be_given():
    roots = {"clock": slot(Clock, None)}
    with pytest.raises(RequestError, match=r"^--clock.horizon: not given; allowed: a whole number$"):
        check_request(["--clock", "Countdown"], roots)
    tree = check_request(["--clock=Countdown", "--clock.horizon", "3"], roots).tree
    assert tree == {"clock": {"class_path": class_path(Countdown), "init_args": {"horizon": 3}}}
    assert check_request([], roots).tree == {}
    assert check_request(["--clock", "null"], roots).tree == {"clock": None}
