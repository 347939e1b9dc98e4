"""The same job in plain Lightning: the same network and rows, a DataLoader that shuffles, ModelCheckpoint(save_last),
`ckpt_path="last"`, as its documentation recommends, and nothing of ours around it."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from lit_small_lm.backbone import Backbone
from lit_small_lm.context import Context, Visibility


class PlainModule(LightningModule):
    """Next-token prediction, or masked diffusion with a linear schedule."""

    def __init__(self, job: Any) -> None:
        super().__init__()
        self.job, self.net = job, Backbone(job.backbone, job.shape.resolve(), job.specials.vocab_size)
        self.net.init_weights()

    def training_step(self, batch, batch_idx):
        tokens, targets = batch[0][:, :-1], batch[0][:, 1:]  # (B, T)
        if self.job.objective == "autoregressive":
            return self._nll(tokens, targets, batch[1], "causal").mean()
        time = torch.rand(len(tokens), 1).clamp_min(0.01)
        masked = torch.rand(tokens.shape) < time
        noised = tokens.masked_fill(masked, self.job.specials.mask)
        return (self._nll(noised, tokens, batch[1], "bidirectional") * masked / time).mean()

    def _nll(self, tokens, targets, doc_ids, kind):
        return self.net(tokens, Context(Visibility.rows(tokens, doc_ids[:, :-1], kind)), targets)  # (B, T)

    def validation_step(self, batch, batch_idx):
        self.training_step(batch, batch_idx)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.003)
        steps, warmup, decay = self.job.steps, 10, 0.3

        def rate(step: int) -> float:
            return min(1.0, (step + 1) / warmup, max(0, steps - step) / (decay * steps) + 1e-3)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def train(job: Any, folder: Path, witness: Any, keep: int = 1, **settings: Any) -> int:
    """Train in `folder` from the newest checkpoint there, to the end; returns the exit status."""
    seed_everything(0, verbose=False)
    rows = TensorDataset(*job.rows)
    size = job.batch // job.accumulate // settings.get("devices", 1)
    loader = DataLoader(rows, batch_size=size, shuffle=True, num_workers=job.workers)
    kept = ModelCheckpoint(folder, every_n_train_steps=job.save_every, save_last=True, save_top_k=keep)
    average = [EMAWeightAveraging(decay=0.9)] if job.average else []
    often = {"val_check_interval": 40 * job.accumulate, "check_val_every_n_epoch": None, "limit_val_batches": 2}
    trainer = Trainer(
        max_steps=job.steps, accumulate_grad_batches=job.accumulate, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, gradient_clip_val=1.0,
        callbacks=[witness, kept, *average], **{"devices": 1, **often, **settings},
    )  # fmt: skip
    trainer.fit(PlainModule(job), loader, DataLoader(rows, batch_size=size), ckpt_path="last")
    return 0


def script() -> int:
    """A process of its own: what to train is in the environment."""
    import json
    import sys

    sys.path.insert(0, str(Path(__file__).parent))
    from job import Job
    from witness import Witness

    asked = json.loads(os.environ["PLAIN_JOB"])
    torch.set_num_threads(1)
    job = Job(Path(asked["job"].pop("folder")), **asked["job"])
    return train(job, Path(asked["folder"]), Witness(**asked["witness"]), asked.get("keep", 1), **asked["settings"])


if __name__ == "__main__":
    raise SystemExit(script())
