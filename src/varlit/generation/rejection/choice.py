"""Rejection sampling: draw more than is wanted, keep what a classifier knows best by its class.

The "-re" rows of the paper. No code of them is public; this is what the line of work that they
come from does (VQGAN, Esser et al. 2021: m out of n by the class's score).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.generation.rejection.counterparts import Targets, told_outputs, unmatched
from varlit.generation.rejection.rule import PAPER_PER_CLASS, RejectionCost, RejectionSettings
from varlit.generation.sampler import Drawn

Draw = Callable[[Tensor, list[int]], Drawn]
Classify = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Kept:
    """The chosen images of one group, ready while the next group is drawn."""

    ids: list[int]  # places in the labels that were asked for
    seeds: list[int]  # what each was drawn from, in rising order of the candidates
    scores: list[float]  # probability of the class; NaN where the classifier has none for it
    drawn: Drawn


@dataclass(frozen=True, slots=True)
class _Candidate:
    group: int
    place: int  # among its group's candidates; ties go to the lower
    label: int
    seed: int


@dataclass(frozen=True)
class _Scored:
    candidate: _Candidate
    log_odds: float
    is_known: bool
    drawn: Drawn  # one row

    @property
    def rank(self) -> tuple[float, int]:
        return -self.log_odds, self.candidate.place


def class_groups(labels: Sequence[int], group_size: int = PAPER_PER_CLASS) -> list[list[int]]:
    """Places in `labels`, in groups of one class that compete; only whole groups are comparable.

    The groups depend on the labels alone. Processes that share work take whole groups
    (`groups[rank::world_size]`), and keep the same images on any number of processes.
    """
    open_groups: dict[int, list[int]] = {}
    groups: list[list[int]] = []
    for place, label in enumerate(labels):
        group = open_groups.get(label)
        if group is None or len(group) == group_size:
            group = open_groups[label] = []
            groups.append(group)
        group.append(place)
    return groups


@dataclass
class Rejection:
    """Draws groups of images and keeps the best of each.

    Args:
        classify: From images (B, 3, H, W) in [-1, 1] to logits (B, C).
        targets: For each class the output that speaks for it, from `counterparts`. Images of a
            class without one are drawn once and kept.
        settings: Who competes.
    """

    classify: Classify
    targets: Targets
    settings: RejectionSettings = field(default_factory=RejectionSettings)
    cost: RejectionCost = field(default_factory=RejectionCost)

    def keep(
        self,
        draw: Draw,
        labels: Sequence[int],
        seeds: Sequence[int],
        batch_size: int,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> Iterator[Kept]:
        """Choose an image for each label; no more than a group and a batch are held at a time.

        Which images are candidates depends on labels and seeds alone, not on the batch size.

        Args:
            draw: Images of labels (B,) and seeds; the same image for the same seed in any batch.
            labels: Of the wanted images.
            seeds: Of the wanted images; image i competes with seeds[i] * m and the m - 1 after it,
                and those of its group, where m is `settings.seeds_per_image`.
            batch_size: Candidates drawn at a time.
            groups: This process's part of `class_groups`; all by default.

        Raises:
            UserError: If the classifier gives no number, or seeds leave 64 bits.
        """
        if groups is None:
            groups = class_groups(labels, self.settings.group_size)
        queue = list(self._candidates(labels, seeds, groups))
        num_left = [0] * len(groups)
        for candidate in queue:
            num_left[candidate.group] += 1
        best: dict[int, list[_Scored]] = {}
        for start in range(0, len(queue), batch_size):
            for scored in self._score(draw, queue[start : start + batch_size]):
                group = scored.candidate.group
                held = best.setdefault(group, [])
                held.append(scored)
                held.sort(key=lambda one: one.rank)
                del held[len(groups[group]) :]
                num_left[group] -= 1
                if num_left[group] == 0:
                    yield self._finished(groups[group], best.pop(group))

    def drawing(self, draw: Draw, batch_size: int) -> Draw:
        """The same kind of function as `draw`, whose images are chosen.

        With a group size of 1 any labels and seeds may be asked for together; with a larger one
        whole groups of `class_groups`, for those that are drawn together compete.
        """

        def chosen(labels: Tensor, seeds: list[int]) -> Drawn:
            return keep_all(self.keep(draw, labels.tolist(), seeds, batch_size)).drawn

        return chosen

    def protocol(self) -> dict[str, Any]:
        """How images are chosen, as plain data; it belongs beside the sampler's settings."""
        told = {
            "keep": self.settings.share,
            "keep_group_size": self.settings.group_size,
            "classifier_classes": told_outputs(self.targets),
        }
        about = getattr(self.classify, "protocol", None)
        return told | (about() if about else {"classifier": type(self.classify).__name__})

    def num_candidates(self, labels: Sequence[int]) -> int:
        """How many images will be drawn for these, on all processes together."""
        groups = class_groups(labels, self.settings.group_size)
        return sum(self._size(labels[group[0]], len(group)) for group in groups)

    def _size(self, label: int, num_wanted: int) -> int:
        is_free = bool(unmatched(self.targets, [label]))
        return num_wanted if is_free else self.settings.num_candidates(num_wanted)

    def _candidates(
        self, labels: Sequence[int], seeds: Sequence[int], groups: Sequence[Sequence[int]]
    ) -> Iterator[_Candidate]:
        """All that will be drawn, group by group; rounds go over the group's images."""
        block = self.settings.seeds_per_image
        for number, group in enumerate(groups):
            label, size = labels[group[0]], len(group)
            for place in range(self._size(label, size)):
                seed = seeds[group[place % size]] * block + place // size
                if not -(2**63) <= seed < 2**63:
                    raise UserError(
                        f"a seed of rejection sampling must fit into 64 bits; got {seed}, which is "
                        f"{block} times that of its image"
                    )
                yield _Candidate(number, place, label, seed)

    def _score(self, draw: Draw, batch: Sequence[_Candidate]) -> Iterator[_Scored]:
        started = _now()
        drawn = draw(torch.tensor([one.label for one in batch]), [one.seed for one in batch])
        _wait(drawn.images.device)
        between = _now()
        logits = self.classify(drawn.images).double().cpu()
        self.cost.draw_s += between - started
        self.cost.classify_s += _now() - between
        for i, one in enumerate(batch):
            target = self.targets[one.label] if one.label < len(self.targets) else None
            found = math.nan if target is None else _log_odds(logits[i], target)
            if target is not None and math.isnan(found):
                raise UserError(
                    f"the classifier's score of class {one.label}, seed {one.seed}, is not a "
                    "number; see that its weights and the drawn images are finite"
                )
            is_known = target is not None and int(logits[i].argmax()) == target
            self.cost.add(is_known, is_judged=target is not None)
            yield _Scored(one, 0.0 if target is None else found, is_known, drawn.rows([i]))

    def _finished(self, ids: Sequence[int], best: list[_Scored]) -> Kept:
        best = sorted(best, key=lambda one: one.candidate.place)
        is_free = unmatched(self.targets, [best[0].candidate.label])
        if not is_free:
            self.cost.add_kept([one.is_known for one in best])
        return Kept(
            ids=list(ids),
            seeds=[one.candidate.seed for one in best],
            scores=[math.nan if is_free else _probability(one.log_odds) for one in best],
            drawn=Drawn.joined([one.drawn for one in best]),
        )


def num_outputs(classify: Classify, image_px: int, device: torch.device) -> int:
    """How many classes a classifier knows, asked with an empty picture before any is drawn.

    Raises:
        UserError: If it gives no row of logits an image.
    """
    with torch.no_grad():
        found = classify(torch.zeros(2, 3, image_px, image_px, device=device))
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(
            f"a classifier gives logits (B, C) of images (B, 3, H, W); got {shape} of 2"
        )
    return found.shape[1]


def keep_all(kept: Iterator[Kept]) -> Kept:
    """All groups as one, in the order of the labels."""
    groups = list(kept)
    ids = [place for group in groups for place in group.ids]
    order = sorted(range(len(ids)), key=ids.__getitem__)
    seeds = [seed for group in groups for seed in group.seeds]
    scores = [score for group in groups for score in group.scores]
    return Kept(
        ids=[ids[i] for i in order],
        seeds=[seeds[i] for i in order],
        scores=[scores[i] for i in order],
        drawn=Drawn.joined([group.drawn for group in groups]).rows(order),
    )


def _log_odds(logits: Tensor, target: int) -> float:
    """Of a class against all others: many a probability is 1 in floats, and ties would decide."""
    others = torch.cat((logits[:target], logits[target + 1 :]))
    return float(logits[target] - others.logsumexp(0))


def _probability(log_odds: float) -> float:
    return float(torch.tensor(log_odds, dtype=torch.float64).sigmoid())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _now() -> float:
    return time.perf_counter()
