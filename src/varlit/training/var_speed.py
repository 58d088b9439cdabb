"""How stage 2 computes the same faster, or in less memory: settings of a run and not of a VAR."""

import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from varlit.errors import UserError
from varlit.models.attention_timing import AttentionShape, attention_table, measure_attention
from varlit.models.config import PlainConfig
from varlit.models.var import VAR, Checkpointing, CompileMode

Attention = Literal["auto", "measure", "dense", "segmented", "flex"]


@dataclass(frozen=True)
class SpeedConfig(PlainConfig):
    """How training computes. Results agree up to rounding, so a resumed run may change it."""

    attention: Attention = "auto"
    """auto = segmented, and flex on a GPU for more than 1,000 tokens; measure = try out what is
    fastest at the start, which a resumed run may decide otherwise."""
    compile: CompileMode = "none"
    """torch.compile of what all blocks have in common, at fixed shapes; a minute at the start."""
    memory_budget: float = 1.0
    """Share of activations that a compiled block keeps; the rest is computed again."""
    checkpointing: Checkpointing = "none"
    """blocks = keep one tensor a block and compute the rest again, for a third more operations."""

    def __post_init__(self) -> None:
        for name, known in (
            ("attention", get_args(Attention)),
            ("compile", get_args(CompileMode)),
            ("checkpointing", get_args(Checkpointing)),
        ):
            if getattr(self, name) not in known:
                got = getattr(self, name)
                raise UserError(f"speed.{name} must be one of {', '.join(known)}; got `{got}`")
        if not 0 < self.memory_budget <= 1:
            raise UserError(
                f"speed.memory_budget must be above 0 and at most 1; got {self.memory_budget}"
            )
        if self.memory_budget < 1 and self.compile == "none":
            warnings.warn(
                "speed.memory_budget is ignored: only compiled blocks have one; set speed.compile "
                "default, or speed.checkpointing blocks",
                stacklevel=3,
            )


def speed_up(network: VAR, config: SpeedConfig, module: LightningModule, images: int) -> None:
    """Prepare a network for training as the settings say.

    Args:
        network: Changed in place; weights and results stay.
        config: The settings.
        module: Whose trainer and device it trains with.
        images: On a device at a time.
    """
    choice = config.attention
    if choice == "measure":
        choice = _fastest_attention(network, module, images)
    network.use_attention(choice)
    network.checkpoint_activations = config.checkpointing
    network.compile_blocks(config.compile, config.memory_budget)


def _fastest_attention(
    network: VAR, module: LightningModule, images: int
) -> Literal["dense", "segmented", "flex"]:
    """Try the ways to attend on every process, and take the first one's word."""
    is_half = "bf16" in str(module.trainer.precision)
    shape = AttentionShape(
        network.steps,
        images,
        network.config.resolved_heads,
        network.config.head_dim,
        torch.bfloat16 if is_half else torch.float32,
    )
    timings = measure_attention(shape, module.device)
    choice = module.trainer.strategy.broadcast(timings[0].backend)
    rank_zero_only(print)(
        f"{attention_table(timings)}\nvarlit: attention {choice}; a resumed run measures again and "
        f"may differ by rounding. To repeat to the bit: --model.speed.attention {choice}",
        flush=True,
    )
    return choice
