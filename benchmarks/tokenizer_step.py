"""A training step of stage 1: ours against the two backward passes of public trainers.

python benchmarks/tokenizer_step.py [--device cuda] [--size imagenet256] [--out benchmarks/results]
"""

import logging
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness.options import Benchmark, build_parser, compete, exit_code, resolve
from harness.stopwatch import Lap, Rival, Stopwatch, lap_of
from lightning.pytorch import Callback, LightningDataModule, Trainer
from tokenizer_sizes import SIZES, Size, build_module, random_images
from torch import Tensor
from torch.utils.data import DataLoader

from varlit.losses.adversarial import discriminator_loss, generator_loss
from varlit.training.ema import update_average
from varlit.training.optim import IMAGES_PER_LR, build_adamw
from varlit.training.tokenizer import TokenizerModule

ONLY_NETWORK = "generator only"
WITH_LPIPS = "generator, LPIPS"
TWO_PASSES = "LPIPS, GAN: two passes (reference)"
TWO_FORWARDS = "LPIPS, GAN: two passes, two forwards"
FUSED = "LPIPS, GAN: fused (ours)"

# Steps at the start of every lap that do not count. A fit of Lightning begins with new moments,
# and on CUDA it ends by moving the networks away and emptying torch's cache of memory, which the
# reference would pay for too.
NUM_SKIPPED_STEPS = {"cpu": 1, "cuda": 2}
LAP_S = 1.0
NOTES = {
    "imagenet256": (
        "Target on an H100: 130 images/s for the fused step. At 790 TFLOP/s the network alone, "
        "without LPIPS and GAN, could do 432 (by formula).",
    )
}


class OneBatch(LightningDataModule):
    """The same batch again and again, already on the device."""

    def __init__(self, images: Tensor, num_steps: int) -> None:
        super().__init__()
        self.batch_size, self.num_steps = len(images), num_steps
        zeros = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        self.batch = {"image": images, "label": zeros, "id": zeros, "crop": zeros}

    def train_dataloader(self) -> DataLoader[Any]:
        """A batch for each step of one epoch."""
        batches: Any = [self.batch] * self.num_steps
        return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)


class LapTimer(Callback):
    """Times the steps of a fit from one step's start to another's end."""

    def __init__(self, first: int, last: int, device: torch.device) -> None:
        self.first, self.last, self.watch = first, last, Stopwatch(device)
        self.seconds = 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        if index == self.first:
            self.watch.start()

    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, i: int) -> None:
        if i == self.last:
            self.seconds = self.watch.stop()


def train(
    module: TokenizerModule, images: Tensor, precision: str, num_steps: int, num_skipped: int = 0
) -> float:
    """Train by Lightning's own loop, as `varlit tokenizer fit` does.

    Returns:
        Seconds a step, those of the first `num_skipped` left out.
    """
    total = num_skipped + num_steps
    timer = LapTimer(num_skipped, total - 1, images.device)
    trainer = Trainer(
        accelerator="gpu" if images.is_cuda else "cpu",
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_steps=total,
        callbacks=[timer],
        benchmark=True,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, OneBatch(images, total))
    assert trainer.global_step == total
    return timer.seconds / num_steps


class TwoPasses:
    """The plain reference: a loop without Lightning that trains one network after the other.

    Forward, backward and optimizer of the generator, with the discriminator frozen; then forward,
    backward and optimizer of the discriminator on the reconstruction at hand (LlamaGen, vaex), or
    on one computed anew (taming-transformers). Losses, clipping, averaging and AdamW are ours.
    """

    def __init__(
        self, module: TokenizerModule, batch_size: int, precision: str, second_forward: bool = False
    ) -> None:
        self.module, self.second_forward = module, second_forward
        self.is_bf16 = precision == "bf16-mixed"
        config = module.optim_config
        self.optimizers = [
            build_adamw(module.network, config),
            build_adamw(module.discriminator, config, config.disc_weight_decay),
        ]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.lr * batch_size / IMAGES_PER_LR
        self.num_steps = 0

    def step(self, images: Tensor) -> None:
        """Both networks learn from a batch (B, 3, H, W)."""
        module, autocast = self.module, partial(torch.autocast, images.device.type, torch.bfloat16)
        network, judge, config = module.network, module.discriminator, module.loss.config
        with autocast(enabled=self.is_bf16, cache_enabled=False):
            output = network(images)
            terms = module.loss.reconstruction_terms(output, images)
            judge.requires_grad_(False)
            adversarial = generator_loss(judge(output.reconstruction), config.disc_loss)
            judge.requires_grad_(True)
            balance = plain_adaptive_weight(
                terms.reconstruction, adversarial, network.last_layer
            ).clamp(config.adaptive_min, config.adaptive_max)
            total = terms.total + config.disc_weight * balance * adversarial
        self._learn(network, self.optimizers[0], total)
        with autocast(enabled=self.is_bf16, cache_enabled=False):
            fake = output.reconstruction.detach()
            if self.second_forward:
                with torch.no_grad():
                    fake = network(images).reconstruction
            loss = discriminator_loss(judge(images), judge(fake), config.disc_loss)
        self._learn(judge, self.optimizers[1], loss)
        self.num_steps += 1
        if module.average is not None:
            decay = module.optim_config.ema_decay
            update_average(module.average, network, decay, self.num_steps)

    def _learn(
        self, network: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor
    ) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip = self.module.optim_config.grad_clip
        torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()


def plain_adaptive_weight(nll: Tensor, gan: Tensor, layer: torch.nn.Parameter) -> Tensor:
    """VQGAN's weight the way public trainers take it: back through LPIPS and the judge twice."""
    (nll_grad,) = torch.autograd.grad(nll, layer, retain_graph=True)
    (gan_grad,) = torch.autograd.grad(gan, layer, retain_graph=True)
    return (nll_grad.float().norm() / (gan_grad.float().norm() + 1e-6)).detach()


def build_rivals(
    size: Size, batch_size: int, device: torch.device, precision: str, nhwc: bool
) -> list[Rival]:
    """Rows of the table; nothing is built before it is run."""

    num_skipped = NUM_SKIPPED_STEPS[device.type]

    def ours(with_perceptual: bool, with_gan: bool) -> Lap:
        images = random_images(size, batch_size, device, nhwc)
        module = build_module(size, with_perceptual, with_gan, nhwc)
        return lambda num_runs: train(module, images, precision, num_runs, num_skipped)

    def reference(second_forward: bool) -> Lap:
        images = random_images(size, batch_size, device, nhwc)
        module = build_module(size, True, True, nhwc).to(device)
        loop = TwoPasses(module, batch_size, precision, second_forward)
        return lap_of(lambda: loop.step(images), device, num_skipped)

    builders = {
        ONLY_NETWORK: partial(ours, False, False),
        WITH_LPIPS: partial(ours, True, False),
        TWO_FORWARDS: partial(reference, True),
        TWO_PASSES: partial(reference, False),
        FUSED: partial(ours, True, True),
    }
    return [
        Rival(name, build, batch_size, "" if name == TWO_PASSES else TWO_PASSES)
        for name, build in builders.items()
    ]


def main(words: list[str]) -> int:
    """Run the benchmark.

    Args:
        words: The command line.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    parser = build_parser("Time and memory of a training step of stage 1.", list(SIZES))
    args = resolve(parser.parse_args(words), cpu_size="photos64", cuda_size="imagenet256")
    # A choice of kernels for the one shape, as conf/base.yaml has it.
    torch.backends.cudnn.benchmark = True
    size = SIZES[args.size]
    batch_size = args.batch or size.batch_size
    nhwc = args.channels_last
    settings = {
        "size": args.size,
        "image": f"{size.tokenizer.image_size} px",
        "batch": batch_size,
        "precision": args.precision,
        "layout": "NHWC" if nhwc else "NCHW",
        "LPIPS": f"{size.perceptual_net} (random trunk)",
        "rounds": args.rounds,
    }
    rivals = build_rivals(size, batch_size, args.device, args.precision, nhwc)
    notes = NOTES.get(args.size, ())
    benchmark = Benchmark(Path(__file__), rivals, settings, notes, with_memory=True, lap_s=LAP_S)
    return compete(benchmark, args, words)


if __name__ == "__main__":
    sys.exit(exit_code(main))
