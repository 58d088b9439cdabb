"""Rejection sampling by numbers: what share is kept, who competes, and what it took."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from varlit.errors import UserError

PAPER_PER_CLASS = 50
_ROUNDING = 1e-9  # 1 / 0.1 is not 10 in floats


@dataclass(frozen=True)
class RejectionSettings:
    """Who competes with whom, and what part of them is kept."""

    share: float = 1.0
    """Part of the candidates that is kept; 1 = all, 0.25 = the best of four times as many."""
    group_size: int = PAPER_PER_CLASS
    """Images of a class that are chosen together; 1 = each is the best of its own candidates."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"the share to keep must lie above 0 and up to 1; got {self.share}")
        if self.group_size < 1:
            raise UserError(f"a group has at least 1 image; got {self.group_size}")

    @property
    def seeds_per_image(self) -> int:
        """Seeds that belong to one wanted image: its own s gives s * this, s * this + 1 ..."""
        return math.ceil(1 / self.share - _ROUNDING)

    def num_candidates(self, num_wanted: int) -> int:
        """How many are drawn so that `num_wanted` are the share of them."""
        return math.ceil(num_wanted / self.share - _ROUNDING)


@dataclass
class RejectionCost:
    """What it took, so far; those of several processes add up, seconds included."""

    num_drawn: int = 0
    num_kept: int = 0
    num_known: int = 0  # of those drawn, how many are of their class at the first guess
    num_known_kept: int = 0
    num_unjudged: int = 0  # drawn and kept: the classifier has no output for their class
    draw_s: float = 0.0
    classify_s: float = 0.0

    def add(self, is_known: bool, is_judged: bool) -> None:
        """Count an image that was drawn."""
        self.num_drawn += is_judged
        self.num_known += is_known
        self.num_unjudged += not is_judged

    def add_kept(self, are_known: Sequence[bool]) -> None:
        """Count judged images that were kept."""
        self.num_kept += len(are_known)
        self.num_known_kept += sum(are_known)

    def counts(self) -> dict[str, float]:
        """All that is counted, by name: what `add_counts` takes."""
        return asdict(self)

    def add_counts(self, counts: Mapping[str, float]) -> None:
        """Add what another process, or an earlier one, has counted.

        Raises:
            UserError: If these are no counts.
        """
        own = self.counts()
        is_known = isinstance(counts, Mapping) and counts.keys() <= own.keys()
        if not is_known or not all(type(n) in (int, float) and n >= 0 for n in counts.values()):
            raise UserError(
                "the counts saved beside the features are damaged; remove both to begin anew"
            )
        for name, value in counts.items():
            setattr(self, name, own[name] + type(own[name])(value))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a protocol; shares are of the images that the classifier could judge."""
        seconds = self.draw_s + self.classify_s
        return {
            "images_drawn": self.num_drawn,
            "images_kept": self.num_kept,
            "images_unjudged": self.num_unjudged,
            "acceptance_share": self.num_kept / max(self.num_drawn, 1),
            "top1_drawn": self.num_known / max(self.num_drawn, 1),
            "top1_kept": self.num_known_kept / max(self.num_kept, 1),
            "seconds": round(seconds, 3),
            "classifier_share_of_time": self.classify_s / seconds if seconds else 0.0,
        }
