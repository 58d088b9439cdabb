"""One of two processes of which only the second meets NaN, for test_guarded_runs.py."""

import json
import math
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy

from varlit.callbacks.guard import Guard
from varlit.cli.running.ending import end_at_once
from varlit.data.digits import DigitsDataModule
from varlit.data.tokens.module import TokenDataModule
from varlit.losses.tokenizer import TokenizerLossConfig
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.discriminator import DiscriminatorConfig
from varlit.training.codebook import CodebookConfig
from varlit.training.optim import OptimConfig, TokenizerOptimConfig
from varlit.training.sharding import ShardedStrategy, whole
from varlit.training.tokenizer import TokenizerModule
from varlit.training.var import VARModule

LIMIT_S = 60


class Poison(Callback):
    """Breaks the third step of the second process, and keeps what every step did."""

    def __init__(self, how):
        self.how, self.stood_still, self.skipped = how, [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 2 and trainer.global_rank == 1:
            self.how(module, batch)
        self.before = fingerprint(module)

    def on_train_batch_end(self, trainer, module, *args):
        self.stood_still.append(fingerprint(module) == self.before)


def fingerprint(module):
    return sum(float(whole(p).detach().double().abs().sum()) for p in module.network.parameters())


def image(module, batch):
    batch["image"][0] = math.nan


def embedding(module, batch):
    handle = module.network.class_embedding.register_forward_hook(
        lambda _, inputs, output: (handle.remove(), output * math.nan)[1]
    )


def term(module, batch):
    """Only a number that is looked at: the summed gradients do not tell the other process."""
    see = module.guard.see

    def infinite(loss, terms):
        module.guard.see = see
        see(loss, {**terms, "loss/extra": torch.tensor(math.inf)})

    module.guard.see = infinite


def tokenizer(cache):
    shape = TokenizerConfig(
        channels=32,
        channel_multipliers=(1, 1, 1),
        num_res_blocks=1,
        codebook_size=24,
        codebook_dim=8,
        scales=(1, 2, 4),
    )
    module = TokenizerModule(
        tokenizer=shape,
        loss=TokenizerLossConfig(perceptual_weight=0.0, disc_weight=0.5, disc_start=0.0),
        discriminator=DiscriminatorConfig(channels=32, num_layers=2),
        optim=TokenizerOptimConfig(ema_decay=0.9),
        codebook=CodebookConfig(update="ema", restart_below=0.5),
        image_size=16,
    )
    return module, DigitsDataModule(batch_size=8, image_size=16)


def transformer(cache):
    module = VARModule(
        var=VARConfig(depth=2, width=32, num_heads=4),
        optim=OptimConfig(ema_decay=0.9, lr=1e-2),
        num_classes=3,
        tokenizer=str(cache / "tokenizer"),
    )
    return module, TokenDataModule(str(cache), batch_size=8)


def train(folder, name, make, how, strategy, cache):
    torch.manual_seed(1)
    (module, data), guard, poison = make(cache), Guard(), Poison(how)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_steps=4,
        callbacks=[guard, poison],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder / name,
    )
    trainer.fit(module, data)
    told = {
        "skipped": [step in guard.bad_steps for step in range(1, 5)],
        "stood_still": poison.stood_still,
        "weights": fingerprint(module),
        "finite": math.isfinite(fingerprint(module)),
    }
    (folder / f"{name}-{trainer.global_rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    cache, folder = Path(sys.argv[1]), Path(sys.argv[2])
    # Processes that wait for different things shall not outlive the test that is to find it out.
    limit = timedelta(seconds=LIMIT_S)
    train(folder, "image", tokenizer, image, DDPStrategy(timeout=limit), cache)
    train(folder, "term", tokenizer, term, DDPStrategy(timeout=limit), cache)
    train(folder, "ddp", transformer, embedding, DDPStrategy(timeout=limit), cache)
    train(folder, "fsdp", transformer, embedding, ShardedStrategy(timeout_s=LIMIT_S), cache)
    end_at_once(0)
