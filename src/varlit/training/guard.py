"""A step with NaN or Inf in a loss or a gradient leaves the weights as they were.

Nothing waits for the device: it decides itself whether the optimizer moves anything, and what it
found is read a step later, when it is there anyway. All processes decide alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from varlit.training.optim import gradient_norms
from varlit.training.sharding import whole

KEPT_RECORDS = 4  # where no callback takes them


class Deferred:
    """A few numbers on their way from the device."""

    def __init__(self, values: Tensor) -> None:
        """Send for numbers (N,), without waiting for them."""
        self._values = values
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            # Without an event of its own, reading would wait for all that was asked of the GPU
            # since: for the step after this one too.
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[float]:
        """Wait until they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers: list[float] = self._values.tolist()
        return numbers


@dataclass(frozen=True)
class Gradients:
    """Norm of the gradient of each weight of a network, in a step."""

    network: nn.Module
    weights: list[nn.Parameter]
    norms: Tensor  # (P,)

    def broken(self) -> list[str]:
        """Names of the weights whose gradient is not finite; all processes must call it."""
        is_finite = torch.isfinite(whole(self.norms)).tolist()
        names = {id(weight): name for name, weight in self.network.named_parameters()}
        pairs = zip(self.weights, is_finite, strict=True)
        return [names[id(weight)] for weight, is_fine in pairs if not is_fine]


@dataclass(frozen=True)
class Reading:
    """What the device told of a step."""

    was_skipped: bool
    is_own: bool  # whether a loss of this process was not finite
    loss: float  # of this process, mean over the parts of the step
    gradient_norm: float


@dataclass(frozen=True)
class StepRecord:
    """An optimizer step as the device saw it, to be read a step later."""

    step: int  # the first is 1
    told: Deferred
    terms: list[dict[str, Tensor]]  # one for each part of an accumulated step
    gradients: list[Gradients]

    def read(self) -> Reading:
        """Wait for the device, which is done with the step as a rule."""
        was_skipped, is_own, loss, norm = self.told.read()
        return Reading(bool(was_skipped), bool(is_own), loss, norm)

    def broken_terms(self) -> list[str]:
        """Names of the losses that are not finite in this process, in the order of their making."""
        names: dict[str, None] = {}
        for part in self.terms:
            names |= {n: None for n, term in part.items() if not torch.isfinite(term).all()}
        return list(names)


class StepGuard:
    """Looks at the numbers of every optimizer step, and skips it where they are broken.

    A module's part in it, in this order: `see` after the losses of each part of the step;
    `gradient_norm` of each network when all gradients are there; `judge`, before they are clipped;
    `keep_if_broken` around what else follows the weights; `finish`. A skipped step leaves weights
    and AdamW's moments and counters to the bit as they were. The number of steps, and with it the
    schedules, the data and the random streams, goes on.

    Attributes:
        is_on: Whether steps are looked at.
        is_broken: () bool, whether the running step is skipped; None when it is not looked at.
        records: Steps that nobody has read yet, oldest first.
    """

    is_broken: Tensor | None
    _told: Deferred | None

    def __init__(self) -> None:
        self.is_on = True
        self.records: deque[StepRecord] = deque(maxlen=KEPT_RECORDS)
        self._clear()

    def see(self, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Note the losses of a part of the step.

        Args:
            loss: The one to watch over time.
            terms: All of them by name, of any shape.
        """
        if self.is_on:
            self._losses.append(loss.detach())
            self._terms.append({name: term.detach() for name, term in terms.items()})

    @torch.no_grad()
    def gradient_norm(self, network: nn.Module) -> Tensor:
        """Norm of all gradients of a network, of which those of its weights are noted."""
        weights = [weight for weight in network.parameters() if weight.grad is not None]
        norms = gradient_norms(weights)
        if self.is_on:
            self._gradients.append(Gradients(network, weights, norms))
        norm: Tensor = whole(torch.linalg.vector_norm(norms))
        self._norms.append(norm)
        return norm

    @torch.no_grad()
    def judge(self, optimizer: Optimizer) -> None:
        """Let the optimizer's step be none if any number of any process is broken."""
        if not self.is_on:
            return
        losses = [term.float().flatten() for part in self._terms for term in part.values()]
        is_own = ~torch.isfinite(torch.cat(losses)).all()
        norm = torch.stack(self._norms).norm()
        # A float, because that is what optimizers ask for and what every backend can reduce.
        broken = (is_own | ~torch.isfinite(norm)).float()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(broken, distributed.ReduceOp.MAX)
        self.is_broken = broken.bool()
        mean = torch.stack(self._losses).float().mean()
        self._told = Deferred(torch.stack([broken, is_own.float(), mean, norm.float()]))
        _hold(optimizer, broken)

    @contextmanager
    def keep_if_broken(self, buffers: Iterable[Tensor]) -> Iterator[None]:
        """Within, buffers may take up the step's numbers; if they are broken, that is undone."""
        if self.is_broken is None:
            yield
            return
        kept = [(buffer, buffer.clone()) for buffer in buffers]
        yield
        for buffer, before in kept:
            buffer.copy_(torch.where(self.is_broken, before, buffer))

    def finish(self, step: int) -> None:
        """Put the record of the step, the first being 1, where it can be read; begin the next."""
        if self._told is not None:
            self.records.append(StepRecord(step, self._told, self._terms, self._gradients))
        self._clear()

    def _clear(self) -> None:
        self.is_broken = self._told = None
        self._losses: list[Tensor] = []
        self._terms: list[dict[str, Tensor]] = []
        self._gradients: list[Gradients] = []
        self._norms: list[Tensor] = []


def _hold(optimizer: Optimizer, broken: Tensor) -> None:
    """Skip the coming step of an optimizer if `broken`, () float, is 1."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        # Fused optimizers read it on the device, as torch's GradScaler makes them.
        optimizer.found_inf = broken  # type: ignore[attr-defined]
    elif bool(broken):
        # Others, such as Muon, cost a wait a step: no gradient, no update.
        optimizer.zero_grad(set_to_none=True)
