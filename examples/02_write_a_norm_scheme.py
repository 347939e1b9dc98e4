"""Write a norm scheme of your own: one frozen dataclass, one module, one line of test.

The plug-in is `Fading` and `FadingPath`; the rest of this file checks it and trains with it for two steps:

    python examples/02_write_a_norm_scheme.py

Handed to the command line, the file is imported and only the plug-in counts; nothing is trained by the import:

    lit-small-lm fit -c configs/demo.yaml --plugins examples/02_write_a_norm_scheme.py --model.backbone.norm Fading
"""

from dataclasses import dataclass

from torch import nn

from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.plugin import Norm, NormScheme, setting


@dataclass(frozen=True, kw_only=True)
class Fading(NormScheme):
    """Pre-norm whose branches count less the deeper they are: x + rate**layer * branch(norm(x))."""

    norm: Norm = RMSNorm()
    """The operator, also of the final norm."""
    rate: float = setting(0.9, above=0, high=1)
    """How much of its weight a branch keeps from one layer to the next."""

    def build(self, site):
        return FadingPath(self.norm.build(site.dim), self.rate**site.layer)

    def close(self, dim):
        return self.norm.build(dim)


class FadingPath(nn.Module):
    def __init__(self, norm, factor):
        super().__init__()
        self.norm, self.factor = norm, factor  # a Python number: a tensor would end up in checkpoints

    def forward(self, x, branch):
        return x + self.factor * branch(self.norm(x))


# ------------------------------------------------------------------------------------------------ trying it out
def train(folder):
    """Two optimizer steps of a tiny model on a tiny text; returns its held-out metrics."""
    from lightning.pytorch import Trainer

    from lit_small_lm import AutoregressiveLM, BackboneSpec, FixedShape, TokenData
    from lit_small_lm.data.sources import TextFiles
    from lit_small_lm.data.tokenizer import Bytes

    text = folder / "text.txt"
    text.write_text("All work and no play makes a small model dull.\n" * 200)
    model = AutoregressiveLM(BackboneSpec(norm=Fading(rate=0.8)), FixedShape(dim=32, n_layers=3, n_heads=2))
    data = TokenData(TextFiles(path=str(text)), Bytes(), seq_len=64, batch_size=4, cache_dir=str(folder / "cache"))
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=2,
        check_val_every_n_epoch=None,
    )
    trainer.fit(model, data)
    return model.results


def main():
    import tempfile
    from pathlib import Path

    from lit_small_lm.testing import check

    check(Fading())
    print("Fading keeps every contract of a norm scheme.")
    with tempfile.TemporaryDirectory() as folder:
        results = train(Path(folder))
    loss, rate = results["loss"], results["bits_per_byte"]
    print(f"After two steps: {loss:.3f} nats per token, {rate:.3f} bits per byte held out.")
    print("Now on the command line:")
    print("  lit-small-lm fit -c configs/demo.yaml", end=" ")
    print("--plugins examples/02_write_a_norm_scheme.py --model.backbone.norm Fading")


if __name__ == "__main__":
    main()
