"""From the class to every block's gates, scales and shifts, block by block or in one product."""

from collections.abc import Callable
from functools import cache, partial

import torch
from harness.stopwatch import Rival
from torch import Tensor, nn
from torch.nn import functional as F
from var_rows import assert_same, row
from var_sizes import SEED, Size

EACH = "AdaLN: a product for each block (ours, reference)"
STACKED = "AdaLN: weights stacked, one product"
IN_ADVANCE = "AdaLN: weights stacked before, one product"
EVERY_SCALE = "AdaLN, drawing: at every scale (reference)"
ONCE = "AdaLN, drawing: once an image (ours)"


class AdaLNs:
    """The projections of all blocks, and a batch of classes."""

    def __init__(
        self,
        size: Size,
        batch_size: int,
        device: torch.device,
        autocast: Callable[[], torch.autocast],
    ) -> None:
        self.size, self.batch_size, self.device, self.autocast = size, batch_size, device, autocast
        self.weights = cache(self._weights)
        self.stack = cache(self._stack)

    def learn(self, modulate: Callable[[list[nn.Linear], Tensor], Tensor]) -> Tensor:
        """Modulations of all blocks, (depth, B, 6C), and the gradients of their weights."""
        linears, condition = self.weights()
        with self.autocast():
            out = modulate(linears, condition)
        weights = [weight for linear in linears for weight in linear.parameters()]
        torch.autograd.grad(out, weights, torch.ones_like(out))
        return out.detach()

    def learn_stack(self) -> None:
        """The same, where the weights are one tensor, a copy of what checkpoints hold."""
        with self.autocast():
            out = one_product(*self.stack(), self.weights()[1])
        torch.autograd.grad(out, self.stack(), torch.ones_like(out))

    @torch.no_grad()
    def draw(self, num_times: int) -> None:
        """Modulations of all blocks again and again."""
        for _ in range(num_times):
            with self.autocast():
                in_turn(*self.weights())

    def _weights(self) -> tuple[list[nn.Linear], Tensor]:
        torch.manual_seed(SEED)
        width = self.size.var.resolved_width
        linears = [nn.Linear(width, 6 * width) for _ in range(self.size.var.depth)]
        condition = torch.randn(self.batch_size, width).to(self.device)
        return [linear.to(self.device) for linear in linears], condition

    def _stack(self) -> tuple[Tensor, Tensor]:
        linears = self.weights()[0]
        weight = torch.cat([linear.weight.detach() for linear in linears])
        bias = torch.cat([linear.bias.detach() for linear in linears])
        return weight.requires_grad_(), bias.requires_grad_()


def in_turn(linears: list[nn.Linear], condition: Tensor) -> Tensor:
    """One product for each block.  # (depth, B, 6C)"""
    return torch.stack([linear(condition) for linear in linears])


def one_product(weight: Tensor, bias: Tensor, condition: Tensor) -> Tensor:
    """One product for all blocks, of weights (depth * 6C, C).  # (depth, B, 6C)"""
    return F.linear(condition, weight, bias).unflatten(1, (-1, 6 * weight.shape[1])).transpose(0, 1)


def stacked(linears: list[nn.Linear], condition: Tensor) -> Tensor:
    """One product for all blocks, of weights that are put together for it.  # (depth, B, 6C)"""
    weight = torch.cat([linear.weight for linear in linears])
    return one_product(weight, torch.cat([linear.bias for linear in linears]), condition)


def adaln_rivals(adalns: AdaLNs) -> list[Rival]:
    """Rows of the table."""
    num_scales = adalns.size.scales.num_scales
    training: dict[str, Callable[[], object]] = {
        EACH: partial(adalns.learn, in_turn),
        STACKED: partial(adalns.learn, stacked),
        IN_ADVANCE: adalns.learn_stack,
    }
    drawing: dict[str, Callable[[], object]] = {
        EVERY_SCALE: partial(adalns.draw, num_scales),
        ONCE: partial(adalns.draw, 1),
    }

    def check() -> None:
        assert_same(adalns.learn(in_turn), adalns.learn(stacked))

    place = adalns.device, adalns.batch_size
    return [
        *(row(*place, name, run, EACH, check) for name, run in training.items()),
        *(row(*place, name, run, EVERY_SCALE) for name, run in drawing.items()),
    ]
