"""A tiny fit that can be interrupted: run as a script it waits for signals, slowly."""

import hashlib
import sys
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from varlit.callbacks.interrupt import SaveOnInterrupt
from varlit.data.loader import ResumableLoader
from varlit.data.order import EpochBatchSampler, evaluation_batches

NUM_SAMPLES, BATCH_SIZE, NUM_EPOCHS = 40, 4, 3


class Rows:
    """Points on a noisy plane."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(NUM_SAMPLES, 3, generator=generator)
        self.y = self.x.sum(dim=1, keepdim=True)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index.ids], "y": self.y[index.ids]}


class Plane(LightningModule):
    """Linear regression by SGD with momentum."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Linear(3, 1)
        self.num_batches = 0

    def training_step(self, batch, batch_idx):
        self.num_batches += self.trainer.training
        return torch.nn.functional.mse_loss(self.layer(batch["x"]), batch["y"])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)]

    def train_dataloader(self):
        accumulation = self.trainer.accumulate_grad_batches
        rank, world = self.trainer.global_rank, self.trainer.world_size
        sampler = EpochBatchSampler(NUM_SAMPLES, BATCH_SIZE, rank, world, accumulation)
        return ResumableLoader(Rows(), sampler)

    def val_dataloader(self):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return ResumableLoader(Rows(), evaluation_batches(NUM_SAMPLES, 10, rank, world))


class Slowly(Callback):
    """Give the sender of a signal time, and tell it where the run is."""

    def on_train_batch_end(self, trainer, *args, **kwargs):
        if trainer.is_global_zero:
            print(f"done {trainer.global_step}", flush=True)
        time.sleep(0.05)


def fit(
    folder: Path, *callbacks: Callback, accumulate: int = 1, max_steps: int = -1, devices: int = 1
):
    """Train or go on; returns the module, and the callback that watched the signals."""
    interrupt = SaveOnInterrupt()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=NUM_EPOCHS,
        max_steps=max_steps,
        accumulate_grad_batches=accumulate,
        num_sanity_val_steps=0,
        logger=TensorBoardLogger(folder.parent, name=folder.name, version=""),
        callbacks=[*callbacks, interrupt, ModelCheckpoint(save_last=True, save_top_k=0)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Plane()
    try:
        trainer.fit(module, ckpt_path="last", weights_only=True)
    finally:
        module.interrupt = interrupt
    return module


def digest(module) -> str:
    return hashlib.sha256(
        b"".join(p.detach().numpy().tobytes() for p in module.parameters())
    ).hexdigest()


if __name__ == "__main__":
    fit(Path(sys.argv[1]), Slowly(), devices=int(sys.argv[2]))
    print("finished", flush=True)
