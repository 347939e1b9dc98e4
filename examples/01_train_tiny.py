"""Train a tiny model in Python, load it from its checkpoint, and let it write.

    python examples/01_train_tiny.py [FOLDER_OR_FILE] [STEPS]

Without arguments it trains for 100 steps on the Python standard library's sources, about half a minute on a laptop.
"""

import sys
import tempfile
from pathlib import Path

from lightning.pytorch import Trainer

import lit_small_lm as lsl
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.nn.residual import LayerNormScaling
from lit_small_lm.training.optim import AdamW


def main(text: str | None = None, steps: int = 100) -> None:
    """Train, save, load, write."""
    backbone = lsl.BackboneSpec(norm=LayerNormScaling(), layer=lsl.LayerSpec(canon_at="AC"))
    model = lsl.AutoregressiveLM(backbone, lsl.FixedShape(dim=96, n_layers=3, n_heads=4))
    model.optim = AdamW(lr=5e-3)
    data = lsl.TokenData(source=TextFiles(path=text), seq_len=128, batch_size=8)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=steps,
            accelerator="cpu",
            gradient_clip_val=1.0,
            callbacks=[lsl.WSDSchedule(warmup=0.1, decay=0.2)],
            logger=False,
            enable_checkpointing=False,
            default_root_dir=folder,
        )
        trainer.fit(model, data)
        print("held out:", trainer.validate(model, data, verbose=False))
        trainer.save_checkpoint(Path(folder) / "last.ckpt")
        loaded = lsl.load(Path(folder) / "last.ckpt")
        print("def " + "".join(loaded.generate("def ", 60)))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(arguments[0] if arguments else None, int(arguments[1]) if len(arguments) > 1 else 100)
