"""What parts declare against others, as it reaches the terminal."""

import pytest

TINY = [
    "--model", "AutoregressiveLM",
    "--data.tokenizer", "Bytes", "--data.seq_len", "16", "--data.batch_size", "2", "--trainer.max_steps", "1",
    "--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu", "--model.shape.dim", "16",
    "--model.shape.n_layers", "2", "--model.shape.n_heads", "2",
]  # fmt: skip


@pytest.mark.slow
def test_warnings_of_parts_and_of_the_schedule_are_shown(cli, tiny_text):
    argv = ["--model.backbone.norm", "ProRes", "--model.backbone.norm.scheme", "DeepNorm"]
    argv += ["--model.backbone.init", "ScaledInit", "--data.source.path", str(tiny_text)]
    done = cli("fit", *TINY, *argv)
    assert done.rc == 0
    assert "warning: backbone.norm ProRes with backbone.init ScaledInit: DeepNorm makes" in done.stderr
    assert "warning: trainer.max_steps: 1 with ProRes, which fades branches in until step 2000" in done.stderr


@pytest.mark.slow
def test_a_scheme_without_the_warm_up_it_needs_is_named(cli, tiny_text):
    post = ["--model.backbone.norm", "PostNorm", "--data.source.path", str(tiny_text)]
    done = cli("fit", *TINY, *post, "--schedule.warmup", "0")
    assert done.rc == 0
    assert "warning: schedule.warmup: 0 with PostNorm: Post-LN gradients" in done.stderr
