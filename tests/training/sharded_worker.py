"""One process of the tests of sharding: trains a tiny VAR as it is told, for test_sharding.py."""

import json
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer

from varlit.cli.running.ending import end_at_once
from varlit.data.tokens.module import TokenDataModule
from varlit.models.config import VARConfig
from varlit.training.optim import OptimConfig
from varlit.training.sharding import ShardedStrategy
from varlit.training.var import VARModule


class SaveAt(Callback):
    """Saves once, when some steps are done."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


def train(cache, folder, name, steps, num_devices=1, strategy="auto", parts=False, **more):
    """Train, save at step 2 and at the end, draw, export; returns what was drawn, if first.

    Args:
        cache: Folder of tokens.
        folder: Where checkpoints go.
        name: Of the checkpoints.
        steps: Number of optimizer steps of the whole training.
        num_devices: Processes.
        strategy: auto, ddp or fsdp.
        parts: Whether fsdp saves in parts.
        more: `accumulate`, `precision`, `resume` (a checkpoint), `reshard`.
    """
    cache, folder = Path(cache), Path(folder)
    torch.manual_seed(1)
    module = VARModule(
        # Processes drop different labels and blocks; without drops all of them do the same.
        var=VARConfig(depth=2, width=32, num_heads=4, drop_path=0, class_dropout=0),
        optim=OptimConfig(ema_decay=0.9, lr=1e-2, grad_clip=0.3),
        num_classes=3,
        tokenizer=str(cache / "tokenizer"),
    )
    if strategy == "fsdp":
        strategy = ShardedStrategy(more.get("reshard", True), save_in_parts=parts)
    trainer = Trainer(
        accelerator="cpu",
        devices=num_devices,
        strategy=strategy,
        max_steps=steps,
        precision=more.get("precision", "32-true"),
        accumulate_grad_batches=more.get("accumulate", 1),
        callbacks=[SaveAt(2, folder / f"{name}-half.ckpt")],
        limit_val_batches=1,
        check_val_every_n_epoch=1,
        num_sanity_val_steps=0,
        inference_mode=False,
        logger=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    data = TokenDataModule(str(cache), batch_size=8)  # an epoch has five steps
    trainer.fit(module, data, ckpt_path=more.get("resume"), weights_only=True)
    trainer.save_checkpoint(folder / f"{name}.ckpt")
    with module.gathered():
        if trainer.global_rank:
            return None
        module.export(folder / f"{name}-model")
        return module.draw(torch.tensor([0, 2]), with_frames=False).images


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for job in json.loads(sys.argv[1]):
        train(**job)
    end_at_once(0)
