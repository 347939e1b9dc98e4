"""A run that is killed and resumed is the run that was never killed: every loss, bit for bit."""

import pytest

from lit_small_lm.__main__ import main
from lit_small_lm.checkpoint import checkpoints_in, read
from lit_small_lm.data import encoding, streaming
from lit_small_lm.training.callbacks.checkpoints import Checkpoints


class Crash(BaseException):
    """Stands for a kill: nothing more is written after it."""


def weights(run_dir):
    return read(checkpoints_in(run_dir)[0])["state_dict"]


@pytest.fixture
def crash_after(monkeypatch):
    """Raise at the end of the first training batch of which `step` steps are done."""

    def arm(step):
        original = Checkpoints.on_train_batch_end

        def dying(self, trainer, pl_module, outputs, batch, batch_idx):
            original(self, trainer, pl_module, outputs, batch, batch_idx)
            if trainer.global_step == step:
                raise Crash

        monkeypatch.setattr(Checkpoints, "on_train_batch_end", dying)

    return arm


CASES = {
    "plain": ([], 7),
    "killed at a checkpoint": ([], 6),
    "accumulation": (["--trainer.accumulate_grad_batches", "2"], 8),
    "loader workers": (["--data.num_workers", "2"], 7),
    "validation and checkpoint on one step": (["--trainer.val_check_interval", "3"], 7),
    "validation and checkpoint on one step, accumulated": (
        ["--trainer.val_check_interval", "6", "--trainer.accumulate_grad_batches", "2"], 7),
    "validation on another step": (["--trainer.val_check_interval", "4"], 11),
    "validation due within a step": (
        ["--trainer.val_check_interval", "7", "--trainer.accumulate_grad_batches", "2"], 4),
    "validation by the clock": (["--trainer.val_check_interval", "01:00:00:00"], 7),
    "several epochs": (["--data.batch_size", "EPOCH"], 7),
    "every dropout, z-loss": (
        ["--model.backbone.embedding_dropout", "0.1", "--model.backbone.layer.mixer.attention_dropout", "0.1",
         "--model.backbone.layer.ffn.dropout", "0.1", "--model.backbone.z_loss", "0.001"], 7),
    "moving average": (["--ema_decay", "0.9", "--trainer.val_check_interval", "4"], 7),
    "Muon": (["--optim", "Muon", "--trainer.accumulate_grad_batches", "2"], 8),
    "experts whose bias moves, with an average": (
        ["--trainer.accumulate_grad_batches", "2", "--ema_decay", "0.9", "--activation_checkpointing", "layers",
         "--model.backbone.layer.ffn", "MoE", "--model.backbone.layer.ffn.expert", "GatedMLP",
         "--model.backbone.layer.ffn.n_experts", "4", "--model.backbone.layer.ffn.router", "SigmoidRouter",
         "--model.backbone.layer.ffn.router.top_k", "2", "--model.backbone.layer.ffn.router.bias_rate", "0.1"], 8),
    "diffusion, by blocks": (
        ["--model", "DiffusionLM", "--model.objective", "JointDiffusion", "--model.objective.estimator",
         "complementary", "--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "4"], 7),
    "prompts and responses": (
        ["--model", "DiffusionLM", "--model.objective", "BlockDiffusion", "--data.source", "Responses",
         "--trainer.val_check_interval", "4", "--data.source.path", "PAIRS"], 7),
    "epochs, not steps": (["--trainer.max_steps", "-1", "--trainer.max_epochs", "3", "--data.batch_size", "EPOCH"], 4),
}  # fmt: skip

MIXED = [
    "--data.source", "Mixture", "--data.packing", "best_fit", "--data.batch_size", "8",
    "--data.warmup.batch_size", "6", "--data.warmup.seq_len", "9",
    "--data.source.sources.pages.source", "TextFiles", "--data.source.sources.pages.weight", "0.7",
    "--data.source.sources.notes.source", "TextFiles", "--data.source.sources.notes.weight", "0.3",
]  # fmt: skip
"""Everything that decides which rows a step takes, at once."""


ODD = ["--model.backbone.layer.mixer.dropout", "0.1", "--model.backbone.layer.canon_at", "AC"]


def test_a_run_that_ends_within_a_step_goes_on_with_the_whole_step(tmp_path, tiny, lines, monkeypatch):
    argv = ["fit", *tiny, *ODD, "--trainer.accumulate_grad_batches", "2"]
    assert main([*argv, "--run_dir", str(tmp_path / "whole")]) == 0
    original = Checkpoints.on_train_batch_end

    def ending(self, trainer, pl_module, outputs, batch, batch_idx):
        original(self, trainer, pl_module, outputs, batch, batch_idx)
        trainer.should_stop = (
            trainer.should_stop or batch_idx == 8
        )  # as trainer.max_time does: the first half of step 5

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", ending)
        assert main([*argv, "--run_dir", str(tmp_path / "ended")]) == 0
    assert checkpoints_in(tmp_path / "ended")[0].name == "step=00000004.ckpt"
    assert main(["fit", "--run_dir", str(tmp_path / "ended"), "--resume"]) == 0
    assert lines(tmp_path / "whole").pairs("train/loss") == lines(tmp_path / "ended").pairs("train/loss")
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "ended")
    assert all((first[key] == second[key]).all() for key in first)


@pytest.mark.parametrize("case", CASES)
def test_resumed_equals_uninterrupted(case, tmp_path, tiny, lines, monkeypatch, crash_after):
    extra, step = CASES[case]
    if "EPOCH" in extra:  # 5 batches of 4 rows are an epoch
        text = tmp_path / "small.txt"
        text.write_text("a few words and then some more of them " * 10)
        extra = [*(value.replace("EPOCH", "4") for value in extra), "--data.source.path", str(text)]
    if "PAIRS" in extra:
        pairs = tmp_path / "pairs.jsonl"
        pairs.write_text("".join(f'{{"prompt": "{n} and", "response": "{n % 7}"}}\n' for n in range(99)))
        extra = [value.replace("PAIRS", str(pairs)) for value in extra]
    argv = ["fit", *tiny, *ODD, *extra]
    assert main([*argv, "--run_dir", str(tmp_path / "whole")]) == 0
    with monkeypatch.context():
        crash_after(step)
        with pytest.raises(Crash):
            main([*argv, "--run_dir", str(tmp_path / "killed")])
    monkeypatch.undo()
    killed = lines(tmp_path / "killed")
    assert max(at for at, _ in killed.pairs("train/loss")) <= step
    assert main(["fit", "--run_dir", str(tmp_path / "killed"), "--resume"]) == 0
    whole, resumed = lines(tmp_path / "whole"), lines(tmp_path / "killed")
    for key in ("train/loss", "train/grad_norm", "train/lr", "val/loss", "val/loss_bound", "tokens"):
        assert whole.pairs(key) == resumed.pairs(key), key
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert first.keys() == second.keys()
    assert all((first[key] == second[key]).all() for key in first)


def test_events_hold_every_step_once_after_a_resume(tmp_path, tiny, monkeypatch, crash_after):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    argv = ["fit", *tiny, "--trainer.log_every_n_steps", "1", "--run_dir", str(tmp_path / "run")]
    crash_after(8)
    with pytest.raises(Crash):
        main(argv)
    monkeypatch.undo()
    assert main(["fit", "--run_dir", str(tmp_path / "run"), "--resume"]) == 0
    steps = []
    for file in (tmp_path / "run" / "tensorboard").iterdir():
        events = EventAccumulator(str(file))
        events.Reload()
        if "train/loss" in events.Tags()["scalars"]:
            steps += [event.step for event in events.Scalars("train/loss")]
    assert sorted(steps) == list(range(1, 13))


def test_what_a_resume_changes_is_said_and_takes_effect(tmp_path, tiny, lines, monkeypatch, crash_after, capsys):
    run = str(tmp_path / "run")
    crash_after(7)
    with pytest.raises(Crash):
        main(["fit", *tiny, "--run_dir", run])
    monkeypatch.undo()
    changed = ["--optim.lr", "0.5", "--optim.beta1", "0.8", "--optim.weight_decay", "0.25", "--schedule.decay", "0"]
    assert main(["fit", "--run_dir", run, "--resume", *changed]) == 0
    said = capsys.readouterr().err
    assert "changed: optim.init_args.lr: 0.001 -> 0.5" in said
    rates = dict(lines(tmp_path / "run").pairs("train/lr"))
    assert rates[6] == 0.001
    assert rates[7] == rates[12] == 0.5
    groups = read(checkpoints_in(tmp_path / "run")[0])["optimizer_states"][0]["param_groups"]
    assert {group["betas"] for group in groups} == {(0.8, 0.95)}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.25}
    assert (tmp_path / "run" / "config-until-step-6.yaml").exists()


def test_a_resume_cannot_change_the_model(tmp_path, tiny, monkeypatch, crash_after, capsys):
    crash_after(7)
    with pytest.raises(Crash):
        main(["fit", *tiny, "--run_dir", str(tmp_path / "run")])
    monkeypatch.undo()
    assert main(["fit", "--run_dir", str(tmp_path / "run"), "--resume", "--model.shape.dim", "32"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: model.init_args.shape.init_args.dim: 32, but the checkpoint has 16")


def test_branching_a_decay_off_a_stable_checkpoint(tmp_path, tiny, lines):
    assert main(["fit", *tiny, "--schedule.decay", "0", "--run_dir", str(tmp_path / "trunk")]) == 0
    stable = tmp_path / "trunk" / "checkpoints" / "step=00000006.ckpt"
    before = stable.read_bytes()
    short = ["--trainer.max_steps", "10", "--schedule.decay", "4"]
    assert main(["fit", "--branch_from", str(stable), "--run_dir", str(tmp_path / "branch"), *short]) == 0
    trunk, branch = lines(tmp_path / "trunk"), lines(tmp_path / "branch")
    assert [step for step, _ in branch.pairs("train/loss")] == [7, 8, 9, 10]
    assert branch.pairs("train/loss")[0] == trunk.pairs("train/loss")[6]
    assert branch.pairs("train/lr")[-1][1] < trunk.pairs("train/lr")[-1][1]
    assert stable.read_bytes() == before


def test_init_from_takes_weights_and_nothing_else(tmp_path, tiny, lines):
    assert main(["fit", *tiny, "--run_dir", str(tmp_path / "first")]) == 0
    last = checkpoints_in(tmp_path / "first")[0]
    argv = ["fit", *tiny, "--init_from", str(last), "--run_dir", str(tmp_path / "second")]
    assert main(argv) == 0
    first, second = lines(tmp_path / "first").pairs("train/loss"), lines(tmp_path / "second").pairs("train/loss")
    assert [step for step, _ in second] == list(range(1, 13))
    assert second[0][1] < first[0][1]  # the same first batch, seen before


def test_a_directory_that_holds_a_run_is_refused_without_resume(tmp_path, tiny, capsys):
    run = tmp_path / "run"
    assert main(["fit", *tiny, "--run_dir", str(run)]) == 0
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert main(["fit", *tiny, "--run_dir", str(run)]) == 2
    assert f"lit-small-lm fit --run_dir {run} --resume" in capsys.readouterr().err.splitlines()[-1]
    assert main(["fit", "--run_dir", str(run), "--resume"]) == 2
    assert "finished" in capsys.readouterr().err.splitlines()[-1]
    assert main(["fit", "--run_dir", str(tmp_path / "none"), "--resume"]) == 2
    assert main(["fit", "--resume"]) == 2
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_a_longer_run_after_the_decay_is_refused_and_says_how(tmp_path, tiny, capsys):
    run = tmp_path / "run"
    assert main(["fit", *tiny, "--run_dir", str(run)]) == 0
    assert main(["fit", "--run_dir", str(run), "--resume", "--trainer.max_steps", "24"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "decays from step 10 on" in last
    assert "--branch_from" in last


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 2)])
def test_accumulation_may_change_on_a_resume(before, after, tmp_path, tiny, lines, monkeypatch, crash_after):
    argv = ["fit", *tiny, "--trainer.accumulate_grad_batches", str(before)]
    assert main([*argv, "--run_dir", str(tmp_path / "whole")]) == 0
    crash_after(7)
    with pytest.raises(Crash):
        main([*argv, "--run_dir", str(tmp_path / "killed")])
    monkeypatch.undo()
    changed = ["--trainer.accumulate_grad_batches", str(after)]
    assert main(["fit", "--run_dir", str(tmp_path / "killed"), "--resume", *changed]) == 0
    whole, resumed = lines(tmp_path / "whole"), lines(tmp_path / "killed")
    assert resumed.pairs("tokens") == whole.pairs("tokens")
    wanted = [(step, pytest.approx(loss, rel=1e-5)) for step, loss in whole.pairs("train/loss")]
    assert resumed.pairs("train/loss") == wanted


def test_weights_go_on_with_their_own_tokenizer_on_other_text(tmp_path, tiny, capsys):
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("one two three four five six seven eight nine ten\n" * 60)
    second.write_text("uno dos tres cuatro cinco seis siete ocho nueve diez\n" * 60)
    bpe = ["--data.tokenizer", "BPE", "--data.tokenizer.vocab_size", "280", "--trainer.max_steps", "3"]
    argv = ["fit", *tiny, *bpe, "--data.source.path"]
    assert main([*argv, str(first), "--run_dir", str(tmp_path / "a")]) == 0
    last = checkpoints_in(tmp_path / "a")[0]
    assert main([*argv, str(second), "--init_from", str(last), "--run_dir", str(tmp_path / "b")]) == 0
    tokenizers = [read(checkpoints_in(tmp_path / name)[0])["lit_small_lm"]["tokenizer"] for name in "ab"]
    assert tokenizers[0] == tokenizers[1]
    assert main(["test", "--run_dir", str(tmp_path / "a"), "--data.source.path", str(second)]) == 0
    longer = ["--trainer.max_steps", "5", "--schedule.decay", "0", "--data.source.path", str(second)]
    assert main(["fit", "--branch_from", str(last), "--run_dir", str(tmp_path / "c"), *longer]) in (0, 2)


def test_a_run_given_in_epochs_ends_and_stays_ended(tmp_path, tiny, lines, capsys):
    text = tmp_path / "small.txt"
    text.write_text("a few words and then some more of them " * 10)  # 5 steps are an epoch
    argv = ["fit", *tiny, "--data.source.path", str(text), "--run_dir", str(tmp_path / "run")]
    assert main([*argv, "--trainer.max_epochs", "2", "--trainer.max_steps", "-1"]) == 0
    assert lines(tmp_path / "run").pairs("train/loss")[-1][0] == 10
    assert main(["fit", "--run_dir", str(tmp_path / "run"), "--resume"]) == 2
    assert "finished" in capsys.readouterr().err.splitlines()[-1]


def test_a_run_that_diverges_stops_and_keeps_its_good_checkpoints(tmp_path, tiny, capsys):
    argv = ["fit", *tiny, "--trainer.max_steps", "60", "--checkpoints.every_n_steps", "2", "--schedule.warmup", "0"]
    assert main([*argv, "--optim.lr", "1e30", "--run_dir", str(tmp_path / "run")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: step ")
    assert "training diverged" in last
    for file in checkpoints_in(tmp_path / "run"):
        assert all(tensor.isfinite().all() for tensor in read(file)["state_dict"].values())


@pytest.fixture
def mixed(tiny, tmp_path, monkeypatch):
    """Options of a mixture of two folders of short documents, which are streamed in many windows."""
    monkeypatch.setattr(streaming, "WINDOW", 200)
    monkeypatch.setattr(encoding, "BATCH", 100)
    options = [*tiny[:-2], *MIXED]
    for name, words in (("pages", 9), ("notes", 4)):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(40):
            (folder / f"{number:02}.txt").write_text(f"{name} {number} " * (1 + number % words))
        options += [f"--data.source.sources.{name}.source.path", str(folder)]
    return options


def killed_and_resumed(argv, changes, tmp_path, lines, crash_after):
    """The metrics of an uninterrupted run, and of one that was killed and resumed with `changes`."""
    assert main([*argv, "--run_dir", str(tmp_path / "whole")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", Checkpoints.on_train_batch_end)  # undone on the way out
        crash_after(5)
        with pytest.raises(Crash):
            main([*argv, "--run_dir", str(tmp_path / "killed")])
    assert main(["fit", "--run_dir", str(tmp_path / "killed"), "--resume", *changes]) == 0
    return lines(tmp_path / "whole"), lines(tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize(("reading", "workers", "later"), [
    ("prepared", "0", "2"), ("prepared", "2", "0"), ("streamed", "0", "1"), ("streamed", "1", "0"),
])  # fmt: skip
def test_a_mixture_goes_on_exactly(reading, workers, later, mixed, tmp_path, lines, crash_after):
    """Best fit, both warm-ups, two sources; resumed with other loader workers."""
    argv = ["fit", *mixed, "--data.reading", reading, "--data.num_workers", workers]
    whole, resumed = killed_and_resumed(argv, ["--data.num_workers", later], tmp_path, lines, crash_after)
    for key in ("train/loss", "val/loss", "val/pages/loss", "val/notes/bits_per_byte", "tokens"):
        assert whole.pairs(key) == resumed.pairs(key) != [], key
    assert dict(whole.pairs("tokens"))[2] == 2 * 1 * 16  # an eighth of the batch at first
    last, last_resumed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all((last[key] == last_resumed[key]).all() for key in last)


@pytest.mark.slow
@pytest.mark.parametrize("reading", ["prepared", "streamed"])
def test_a_mixture_goes_on_at_another_accumulation(reading, mixed, tmp_path, lines, crash_after):
    """The same rows in every step; sums of other batches round differently."""
    argv = ["fit", *mixed, "--data.reading", reading, "--data.batch_size", "16"]
    changed = ["--trainer.accumulate_grad_batches", "2"]
    whole, resumed = killed_and_resumed(argv, changed, tmp_path, lines, crash_after)
    assert resumed.pairs("tokens") == whole.pairs("tokens")
    wanted = [(step, pytest.approx(loss, rel=1e-5)) for step, loss in whole.pairs("train/loss")]
    assert resumed.pairs("train/loss") == wanted


def test_a_run_given_in_tokens_decays_ends_and_goes_on(tmp_path, tiny, lines, monkeypatch, crash_after, capsys):
    argv = ["fit", *tiny, "--trainer.max_steps", "-1", "--max_tokens", "700", "--run_dir", str(tmp_path / "run")]
    crash_after(7)
    with pytest.raises(Crash):
        main(argv)
    monkeypatch.undo()
    assert main(["fit", "--run_dir", str(tmp_path / "run"), "--resume"]) == 0
    found = lines(tmp_path / "run")
    assert found.pairs("tokens")[-1] == (11, 704)  # the fewest steps of 4 x 16 tokens that reach 700
    rates = dict(found.pairs("train/lr"))
    assert "--branch_from" in (said := capsys.readouterr().err) and "--max_tokens 1400" in said
    assert rates[11] < rates[9] == rates[8]  # a fifth of the run, two steps, is decay
    assert main(["fit", "--run_dir", str(tmp_path / "run"), "--resume"]) == 2
    assert "max_tokens: 11 steps; the run is finished" in capsys.readouterr().err.splitlines()[-1]
    assert main(["fit", "--run_dir", str(tmp_path / "run"), "--resume", "--max_tokens", "7000"]) == 2
    assert "decays from step 9 on" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--max_tokens", "500"], "trainer.max_steps and max_tokens"),
        (["--trainer.max_epochs", "5"], "trainer.max_steps and trainer.max_epochs"),
        (["--data.batch_tokens", "64"], "data.batch_size: 4 beside data.batch_tokens 64"),
        (["--data.batch_size", "null", "--data.batch_tokens", "100"], "multiples of data.seq_len, 16"),
        (["--data.micro_batch_size", "3"], "divisors of 4"),
        (["--data.micro_batch_size", "2", "--trainer.accumulate_grad_batches", "4"], "accumulate_grad_batches 4"),
        (["--data.warmup.batch_size", "3"], "data.batch_size, which is 4"),
        (["--data.warmup.seq_len", "3", "--data.seq_len", "20"], "data.seq_len, which is 20"),
        (["--data.warmup.batch_size", "3", "--data.batch_size", "8", "--trainer.accumulate_grad_batches", "2"],
         "begins with 1; allowed: multiples of 16"),
        (["--data.reading", "streamed", "--trainer.max_steps", "-1", "--trainer.max_epochs", "1"],
         "trainer.max_epochs"),
        (["--data.packing", "first_fit"], "best_fit"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_named(wrong, says, tmp_path, tiny, capsys):
    assert main(["fit", *tiny, *wrong, "--run_dir", str(tmp_path / "run")]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_batches_given_in_tokens_and_small_ones_are_the_same_training(tmp_path, tiny, lines):
    common = [*tiny, "--trainer.val_check_interval", "3"]
    assert main(["fit", *common, "--run_dir", str(tmp_path / "a")]) == 0
    asked = ["--data.batch_size", "null", "--data.batch_tokens", "64", "--data.micro_batch_size", "1"]
    assert main(["fit", *common, *asked, "--run_dir", str(tmp_path / "b")]) == 0
    first, second = lines(tmp_path / "a"), lines(tmp_path / "b")
    wanted = [(step, pytest.approx(loss, rel=1e-5)) for step, loss in first.pairs("train/loss")]
    assert second.pairs("train/loss") == wanted
    assert [step for step, _ in second.pairs("val/loss")] == [3, 6, 9, 12]
