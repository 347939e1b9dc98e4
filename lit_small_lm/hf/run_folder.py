"""An imported model as a run: a folder with a checkpoint of step 0 that every command takes."""

import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_small_lm.checkpoint import RECORD, LanguageModel, checkpoint_name, grown, make_record, write
from lit_small_lm.context import Context, Visibility
from lit_small_lm.errors import RunError
from lit_small_lm.hf.importing import Imported
from lit_small_lm.hf.tokens import Found

FEW = 16
"""Positions of the random texts that networks are compared on."""


def write_checkpoint(folder: Path, imported: Imported, tokens: Found, config: str) -> Path:
    """The checkpoint file of a run folder, without a training state.

    Args:
        folder: the run's.
        imported: the model.
        tokens: its tokenizer, which says how many rows the network has.
        config: the configuration that trains such a model, as YAML.
    """
    form = imported.form
    record = make_record(
        backbone=form.model.backbone,
        shape=form.model.shape,
        objective=form.objective,
        tokenizer=tokens.spec,
        encoder=tokens.encoder,
        step=0,
        tokens=0,
        seconds=0.0,
        accumulate=1,
        config=config,
        corpus=None,
        imported=origin(imported),
    )
    state = grown(imported.state, tokens.encoder.specials.vocab_size)
    content = {
        "state_dict": {f"net.{name}": tensor for name, tensor in state.items()},
        RECORD: record,
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": importlib.metadata.version("lightning"),
    }
    file = folder / "checkpoints" / checkpoint_name(0)
    write(content, file)
    return file


def origin(imported: Imported) -> dict[str, Any]:
    """What the record keeps of where a model came from."""
    model = imported.form.model
    kept = {"model_type": imported.config["model_type"], "dtypes": list(imported.dtypes), "rows": model.vocab_size}
    return {**kept, "max_length": model.max_length}


@torch.no_grad()
def check_loaded(imported: Imported, loaded: LanguageModel) -> None:
    """Raise RunError if logits are not finite, or a model that was read back gives the imported one's ids others."""
    net, rows = imported.network(), imported.form.model.vocab_size
    ids = random_ids(rows, net.limit())
    wanted, found = net(ids, Context(Visibility.rows(ids))), loaded.logits(ids)[..., :rows]
    if not torch.isfinite(wanted).all():
        raise RunError("import: with these weights and this config.json logits are not finite")
    if not torch.equal(wanted, found):
        off = (wanted - found).abs().max().item()
        raise RunError(f"import: the checkpoint that was written gives other logits, by up to {off:.3g}")


def random_ids(rows: int, limit: int | None) -> Tensor:
    """(2, T) ids, always the same ones."""
    size = (2, min(FEW, limit or FEW))
    return torch.randint(rows, size, generator=torch.Generator().manual_seed(0))
