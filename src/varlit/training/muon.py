"""Muon for the matrices of blocks (Jordan et al. 2024), AdamW for all else: an experiment, off.

Updates are scaled to the size of AdamW's (Liu et al. 2025, Moonlight, section 2.2), so a recipe's
rate and decay need no other values. Nobody has trained a VAR of the paper's sizes this way here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from varlit.errors import UserError
from varlit.training.optim import OptimConfig, build_adamw


class MuonAdamW(Optimizer):
    """One optimizer to Lightning, which counts its steps once: two rules, each for its groups."""

    def __init__(self, muon: Muon, adamw: AdamW) -> None:
        self.rules: dict[str, Optimizer] = {"muon": muon, "adamw": adamw}
        groups = [
            group | {"rule": name}
            for name, rule in self.rules.items()
            for group in rule.param_groups
        ]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let each rule move its own groups; the state of both is kept here."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, rule in self.rules.items():
            # Anew each time: loading a checkpoint replaces groups and state.
            rule.param_groups = [group for group in self.param_groups if group["rule"] == name]
            rule.state = self.state
            rule.step()
        return loss


def build_optimizer(network: nn.Module, config: OptimConfig) -> Optimizer:
    """What `optim.optimizer` names.

    Raises:
        UserError: If Muon finds no matrix, as with LoRA, whose factors are none of a block's own.
    """
    adamw = build_adamw(network, config)
    if config.optimizer == "adamw":
        return adamw
    matrices = {p for name, p in network.named_parameters() if p.requires_grad and is_muons(name)}
    if not matrices:
        raise UserError("optim.optimizer muon moves whole matrices; with model.lora take adamw")
    for group in adamw.param_groups:
        group["params"] = [p for p in group["params"] if p not in matrices]
    # In the network's order, which is that of a checkpoint's state.
    chosen: list[Tensor] = [p for p in network.parameters() if p in matrices]
    group = {"params": chosen, "weight_decay": config.weight_decay, "decays": True}
    return MuonAdamW(Muon([group], lr=config.lr, adjust_lr_fn="match_rms_adamw"), adamw)


def is_muons(name: str) -> bool:
    """Whether Muon moves a weight: matrices of attention and MLP, not those that read the class."""
    return name.startswith("blocks.") and name.endswith(
        ("attention.qkv.weight", "attention.projection.weight", "mlp.0.weight", "mlp.2.weight")
    )
