"""Optimizers of both stages: typed settings, parameter groups, schedules set step by step."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from varlit.errors import UserError
from varlit.models.config import PlainConfig
from varlit.ops.schedules import (
    SCHEDULE_KINDS,
    SETTINGS_READ,
    ScheduleKind,
    cosine_between,
    lr_factor,
)

# Embeddings of place and class-independent gates are few and must not shrink (official VAR).
NO_DECAY_WORDS = ("position", "level_embedding", "log_scale", "adaln_offset", "codebook")
IMAGES_PER_LR = 256
OptimizerKind = Literal["adamw", "muon"]


@dataclass(frozen=True)
class OptimConfig(PlainConfig):
    """AdamW and its schedule, independent of batch size and length of training."""

    optimizer: OptimizerKind = "adamw"
    """muon = Muon for the matrices of attention and MLP, AdamW for the rest; stage 2 only, an
    experiment."""
    lr: float = 1e-4
    """Peak learning rate per 256 images of global batch; the rate used is lr * batch / 256."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging of gradients and their squares."""
    weight_decay: float = 0.05
    """Decoupled weight decay of matrices; biases, gains and places have none."""
    weight_decay_end: float = -1.0
    """Weight decay at the end, reached along half a cosine; -1 = constant."""
    schedule: ScheduleKind = "linear"
    """Shape of the learning rate after the warm-up; all but constant end at `final_lr`."""
    flat: float = 0.05
    """Share of the steps after the warm-up at the peak, where linear or exponential."""
    knee: float = 0.8
    """Share of the steps after the warm-up before the steep part, where piecewise."""
    warmup: float = 0.02
    """Share of all steps that the learning rate rises for."""
    warmup_start: float = 0.005
    """Share of the peak that the warm-up starts at."""
    final_lr: float = 0.1
    """Share of the peak that the schedule ends at."""
    grad_clip: float = 2.0
    """Largest gradient norm; 0 = no clipping."""
    ema_decay: float = 0.0
    """Averaging of the weights that validation, pictures and exports use; 0 = none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.optimizer not in get_args(OptimizerKind):
            raise UserError(f"optim.optimizer must be adamw or muon; got `{self.optimizer}`")
        if self.lr <= 0 or getattr(self, "disc_lr", 0) < 0:
            raise UserError(
                "optim.lr must be positive and optim.disc_lr not negative; got "
                f"{self.lr} and {getattr(self, 'disc_lr', 0)}"
            )
        if self.grad_clip < 0:
            raise UserError(f"optim.grad_clip must not be negative (0 = off); got {self.grad_clip}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optim.betas must lie in 0..1, 1 excluded; got {list(self.betas)}")
        for name in ("warmup", "warmup_start", "final_lr", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"optim.{name} must lie in 0..1; got {getattr(self, name)}")
        self._check_schedule()

    def _check_schedule(self) -> None:
        if self.schedule not in SCHEDULE_KINDS:
            known = ", ".join(SCHEDULE_KINDS)
            raise UserError(f"optim.schedule must be one of {known}; got `{self.schedule}`")
        if not 0 <= self.flat < 1:
            raise UserError(f"optim.flat must lie in 0..1, 1 excluded; got {self.flat}")
        if not 0 < self.knee < 1:
            raise UserError(f"optim.knee must lie between 0 and 1; got {self.knee}")
        if self.schedule == "exponential" and self.final_lr == 0:
            raise UserError(
                "an exponential schedule never reaches optim.final_lr 0; take 0.01, or another "
                "schedule"
            )
        read = SETTINGS_READ[self.schedule]
        for setting, name in (("flat", "flat"), ("knee", "knee"), ("final", "final_lr")):
            if setting not in read and getattr(self, name) != getattr(type(self), name):
                message = f"optim.{name} is ignored: the {self.schedule} schedule does not read it"
                warnings.warn(message, stacklevel=4)


@dataclass(frozen=True)
class TokenizerOptimConfig(OptimConfig):
    """AdamW of stage 1; the defaults are those of vaex, by VAR's authors."""

    betas: tuple[float, float] = (0.5, 0.9)
    """AdamW's averaging of gradients and their squares, for both networks."""
    weight_decay: float = 0.005
    """Decoupled weight decay of the tokenizer's matrices."""
    schedule: ScheduleKind = "cosine"
    """Shape of the learning rate after the warm-up; all but constant end at `final_lr`."""
    warmup: float = 0.01
    """Share of all steps that the learning rate rises for."""
    final_lr: float = 0.3
    """Share of the peak that the schedule ends at."""
    grad_clip: float = 10.0
    """Largest gradient norm, of each network by itself; 0 = no clipping."""
    ema_decay: float = 0.9999
    """Averaging of the tokenizer's weights, with warm-up; 0 = none."""
    disc_lr: float = 0.0
    """Peak learning rate of the discriminator per 256 images; 0 = that of the tokenizer."""
    disc_weight_decay: float = 0.0005
    """Decoupled weight decay of the discriminator."""
    disc_schedule: Literal["own", "shared"] = "own"
    """The discriminator's learning rate: `own` runs warm-up and shape from the discriminator's
    start to the end (vaex), `shared` follows the tokenizer's."""


def build_adamw(
    network: nn.Module, config: OptimConfig, weight_decay: float | None = None
) -> AdamW:
    """AdamW over two groups: matrices with decay, everything else without."""
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim <= 1 or name.endswith("bias")
        exempt = exempt or any(word in name for word in NO_DECAY_WORDS)
        (rest if exempt else decay).append(parameter)
    wd = config.weight_decay if weight_decay is None else weight_decay
    groups = [
        # A decay of its own, the discriminator's, does not follow weight_decay_end.
        {"params": decay, "weight_decay": wd, "decays": weight_decay is None},
        {"params": rest, "weight_decay": 0.0, "decays": False},
    ]
    # Lightning moves the weights before it asks for optimizers, so the device is known here.
    fused = all(p.device.type in ("cuda", "cpu") for p in network.parameters())
    return AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)


def build_players(
    network: nn.Module, discriminator: nn.Module | None, config: TokenizerOptimConfig
) -> AdamW:
    """One AdamW for both players of stage 1, each in groups that bear its name.

    Raises:
        UserError: If another optimizer is asked for.
    """
    if config.optimizer != "adamw":
        raise UserError(f"optim.optimizer {config.optimizer} is for stage 2; take adamw here")
    optimizer = build_adamw(network, config)
    for group in optimizer.param_groups:
        group["player"] = "tokenizer"
    if discriminator is not None:
        for group in build_adamw(discriminator, config, config.disc_weight_decay).param_groups:
            share = config.disc_lr / config.lr if config.disc_lr else 1.0
            optimizer.add_param_group(group | {"player": "discriminator", "lr_share": share})
    return optimizer


def set_schedule(
    optimizer: Optimizer,
    config: OptimConfig,
    step: int,
    total_steps: int,
    batch_size: int,
    player: str | None = None,
) -> None:
    """Write learning rate and weight decay of `step` into an optimizer, or one player's groups.

    They are functions of the step alone, so nothing has to be saved and resuming is exact.
    """
    factor = lr_factor(
        config.schedule,
        step,
        total_steps,
        warmup_steps=round(config.warmup * total_steps),
        start=config.warmup_start,
        final=config.final_lr,
        flat=config.flat,
        knee=config.knee,
    )
    for group in optimizer.param_groups:
        if player is not None and group["player"] != player:
            continue
        share = group.get("lr_share", 1.0)  # of the other player's rate
        group["lr"] = config.lr * share * batch_size / IMAGES_PER_LR * factor
        if group["decays"] and config.weight_decay_end >= 0:
            group["weight_decay"] = cosine_between(
                config.weight_decay, config.weight_decay_end, step, total_steps
            )


def schedule_players(
    optimizer: Optimizer,
    config: TokenizerOptimConfig,
    step: int,
    total_steps: int,
    batch_size: int,
    disc_start: float,
    plays: bool,
) -> None:
    """Write the rates of both players of stage 1.

    Args:
        optimizer: From `build_players`.
        config: Whose `disc_schedule` is read.
        step: Optimizer steps done.
        total_steps: Of the whole training.
        batch_size: Images per step over all devices.
        disc_start: Share of training at which the discriminator joins in.
        plays: Whether it does in this step.
    """
    set_schedule(optimizer, config, step, total_steps, batch_size)
    if plays and config.disc_schedule == "own":
        start = math.ceil(disc_start * total_steps)
        # `plays` asks a share and this a step: rounding may set them one apart.
        own = max(step - start, 0), max(total_steps - start, 1), batch_size
        set_schedule(optimizer, config, *own, player="discriminator")


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Norm over all gradients, without waiting for the device."""
    return torch.linalg.vector_norm(gradient_norms(parameters))


def gradient_norms(parameters: Iterable[Tensor]) -> Tensor:
    """Norm of each gradient there is (P,), without waiting for the device.

    Their norm is `torch.nn.utils.get_total_norm`, to the bit.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(1)
    if any(isinstance(gradient, DTensor) for gradient in gradients):
        return torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
    return torch.stack(torch._foreach_norm(gradients))
