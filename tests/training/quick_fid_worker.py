"""One process of a run with quick FID, for test_quick_fid.py: CACHE REFERENCE DEVICES STRATEGY."""

import sys
import warnings

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from varlit.callbacks.fid import QuickFID
from varlit.cli.running.ending import end_at_once
from varlit.data.tokens.module import TokenDataModule
from varlit.metrics.networks import FeatureNetwork, Features, register_network
from varlit.models.config import VARConfig
from varlit.training.optim import OptimConfig
from varlit.training.sharding import ShardedStrategy
from varlit.training.var import VARModule

NUM_IMAGES = 13


class Pixels(nn.Module):
    """A few pixels; in the second process out of order at the second evaluation."""

    num_seen = 0

    def forward(self, images: Tensor) -> Features:
        self.num_seen += len(images)
        is_second = torch.distributed.is_initialized() and torch.distributed.get_rank() == 1
        # A probe of 2, its 15 images of the reference, 6 of the first evaluation.
        if "fails" in sys.argv and is_second and self.num_seen > 24:
            raise RuntimeError("out of order")
        flat = images.float().flatten(1) / 255
        return Features(flat[:, :5], flat[:, :3], flat[:, -4:])


def main(cache: str, reference: str, num_devices: str, strategy: str) -> None:
    """Train four steps and evaluate at the second and the fourth."""
    register_network("pixels", lambda weights: FeatureNetwork(Pixels(), "pixels"))
    torch.manual_seed(1)
    module = VARModule(
        var=VARConfig(depth=2, width=32, num_heads=4, drop_path=0, class_dropout=0),
        optim=OptimConfig(ema_decay=0.9, lr=1e-2),
        num_classes=3,
        tokenizer=f"{cache}/tokenizer",
    )
    quick = QuickFID(2, NUM_IMAGES, reference, "pixels", batch_size=3)
    trainer = Trainer(
        accelerator="cpu",
        devices=int(num_devices),
        strategy=ShardedStrategy() if strategy == "fsdp" else strategy,
        max_steps=4,
        callbacks=[quick],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, TokenDataModule(cache, batch_size=4))
    print(f"ended at {trainer.global_step}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:5])
    end_at_once(0)
