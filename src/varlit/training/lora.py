"""Low-rank adapters for VAR (LoRA, Hu et al. 2021): a frozen network learns small additions.

Not by peft: `Attention` reads the weight of its qkv layer, whose forward is never called. peft 0.21
wraps that forward, so its adapters there get no gradient, and nobody is told.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varlit.errors import UserError
from varlit.models.config import PlainConfig
from varlit.models.initialization import shapes_only
from varlit.models.var import VAR

# Where each target lies, as the ends of the names of its layers.
PLACES = {
    "qkv": (".attention.qkv",),
    "projection": (".attention.projection",),
    "mlp": (".mlp.0", ".mlp.2"),
    "adaln": (".adaln", "shared_adaln"),
}
FACTORS = ("down", "up", "scale")


@dataclass(frozen=True)
class LoRAConfig(PlainConfig):
    """Train low-rank additions to frozen weights; wants `init_from`."""

    rank: int = 0
    """Rank of the additions; 0 = none, every weight is trained."""
    alpha: float = 8.0
    """Strength: an addition is alpha / rank times the product of its factors."""
    targets: tuple[str, ...] = ("qkv", "projection", "mlp")
    """Layers of all blocks that get one: qkv, projection, mlp, adaln."""
    whole: tuple[str, ...] = ("class_embedding",)
    """Parts trained as they are; class_embedding holds the unconditional row too. New scales want
    position and level_embedding as well."""

    def __post_init__(self) -> None:
        for name in ("targets", "whole"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.rank < 0 or self.alpha <= 0:
            raise UserError(
                f"lora.rank must be at least 0 and lora.alpha above 0; got {self.rank} and "
                f"{self.alpha}"
            )
        if self.rank and not self.targets and not self.whole:
            raise UserError("lora.targets and lora.whole are both empty: nothing would be trained")
        for target in self.targets:
            if target not in PLACES:
                known = ", ".join(PLACES)
                raise UserError(f"lora.targets are among {known}; got `{target}`")


class LowRankLinear(nn.Module):
    """A linear layer whose weight is a frozen one plus a product of two thin ones.

    It starts as the layer that it replaces, to the bit: one factor is zero.
    """

    bias: nn.Parameter | None
    scale: Tensor

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = linear.weight
        self.register_parameter("bias", linear.bias)
        self.down = nn.Parameter(torch.empty(rank, linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.down, math.sqrt(5))  # as in the authors' loralib
        self.register_buffer("scale", torch.tensor(alpha / rank))

    @property
    def weight(self) -> Tensor:
        """The sum, for those who read the weight instead of calling the layer."""
        return _sum(self.base, self.down, self.up, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), without the sum: no gradient as large as the weight is made."""
        addition = F.linear(F.linear(x, self.down), self.up * self.scale)
        return F.linear(x, self.base, self.bias) + addition


def add_lora(network: VAR, config: LoRAConfig) -> None:
    """Freeze a network but for adapters, which are put in, and the parts trained whole.

    Raises:
        UserError: If a part is unknown, or the rank is no lower than the layers' own.
    """
    parts = {name.split(".")[0] for name, _ in network.named_parameters()} - {"blocks"}
    for part in config.whole:
        if part not in parts:
            raise UserError(
                f"lora.whole: no `{part}`; parts of a VAR are {', '.join(sorted(parts))}"
            )
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in config.whole)
    ends = tuple(end for target in config.targets for end in PLACES[target])
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(ends):
            limit = min(module.weight.shape)
            if config.rank >= limit:
                raise UserError(f"lora.rank {config.rank}: `{name}` has rank {limit}; take a lower")
            parent, _, child = name.rpartition(".")
            adapter = LowRankLinear(module, config.rank, config.alpha)
            setattr(network.get_submodule(parent), child, adapter)


def merge_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a plain VAR from that of an adapted one; a plain one's as it is."""
    merged = {}
    for name, tensor in weights.items():
        place, _, last = name.rpartition(".")
        if last == "base":
            factors = (weights[f"{place}.{factor}"] for factor in FACTORS)
            merged[f"{place}.weight"] = _sum(tensor, *factors)
        elif f"{place}.base" not in weights or last not in FACTORS:
            merged[name] = tensor
    return merged


@torch.no_grad()
def merged(network: VAR) -> VAR:
    """A plain VAR that computes the same, frozen and in eval mode; itself if it has no adapters."""
    if not _adapted(network):
        return network
    with shapes_only():
        plain = VAR(network.config, network.tokenizer_config, network.num_classes)
    plain.load_state_dict(merge_weights(network.state_dict()), assign=True)
    return plain.eval().requires_grad_(False)


def load_plain(network: VAR, weights: Mapping[str, Tensor]) -> None:
    """Copy the state of a plain VAR into one that may have adapters, which stay as they are."""
    adapted = _adapted(network)
    renamed = {}
    for name, tensor in weights.items():
        place, _, last = name.rpartition(".")
        is_base = last == "weight" and place in adapted
        renamed[f"{place}.base" if is_base else name] = tensor
    kept = {f"{place}.{factor}" for place in adapted for factor in FACTORS}
    state = network.state_dict()
    network.load_state_dict(renamed | {name: state[name] for name in kept})


def _adapted(network: VAR) -> set[str]:
    return {name for name, part in network.named_modules() if isinstance(part, LowRankLinear)}


def _sum(base: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
    return torch.addmm(base, up * scale, down)
