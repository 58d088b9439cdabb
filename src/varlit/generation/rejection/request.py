"""Rejection sampling as a user asks for it, turned into what chooses: checked before any drawing.

`varlit sample`, `varlit evaluate`, `varlit var test` and `varlit var sweep` share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from varlit.errors import UserError
from varlit.generation.rejection.choice import Rejection
from varlit.generation.rejection.counterparts import counterparts, parse_outputs, unmatched
from varlit.generation.rejection.rule import PAPER_PER_CLASS, RejectionSettings
from varlit.models import classifier as classifiers

UNMATCHED = ("stop", "keep")


@dataclass(frozen=True)
class RejectionRequest:
    """The settings, by the names of the flags.

    Attributes:
        keep: Share of the images drawn that is kept; 1 = no rejection.
        classifier: Its name, as `open_classifier` takes it.
        classifier_weights: Its file.
        classifier_classes: Its output for each class of the model, such as `985,-,3`.
        unmatched: What to do about classes that the classifier does not know: stop or keep.
    """

    keep: float = 1.0
    classifier: str = ""
    classifier_weights: str = ""
    classifier_classes: str = ""
    unmatched: str = "stop"

    def __post_init__(self) -> None:
        RejectionSettings(self.keep)
        if self.keep == 1.0 and self.classifier:
            raise UserError("a classifier chooses nothing at keep 1; try keep 0.25")
        if self.keep < 1.0 and not self.classifier:
            raise UserError(
                f"keep {self.keep:g} needs a classifier: expected torchvision:NAME, timm:NAME or "
                "mobilenet_v2; got none"
            )
        if self.unmatched not in UNMATCHED:
            raise UserError(f"unmatched must be one of {UNMATCHED}; got {self.unmatched!r}")
        parse_outputs(self.classifier_classes)

    def open(
        self,
        num_classes: int,
        class_names: Sequence[str],
        classes: Sequence[int],
        group_size: int = PAPER_PER_CLASS,
    ) -> Rejection | None:
        """What chooses among the images; None where everything is kept.

        Args:
            num_classes: Of the model that draws.
            class_names: Of the same, where known.
            classes: Those that will be drawn.
            group_size: Images of a class that are chosen together.

        Raises:
            UserError: If settings, classifier and classes do not go together.
        """
        if self.keep == 1.0:
            return None
        found = classifiers.open_classifier(self.classifier, self.classifier_weights or None)
        targets = counterparts(
            num_classes,
            class_names,
            found.num_classes,
            found.class_names,
            parse_outputs(self.classifier_classes),
        )
        alone = unmatched(targets, classes)
        if alone and self.unmatched == "stop":
            raise UserError(
                f"{self.classifier} has no class for: {_named(alone, class_names)}. Draw others, "
                "list outputs (classifier_classes), or keep all images of them (unmatched keep)"
            )
        return Rejection(found, targets, RejectionSettings(self.keep, group_size))


def free_classes(
    rejection: Rejection | None, class_names: Sequence[str], classes: Sequence[int]
) -> str:
    """A line about the classes whose images are all kept; empty where there is none."""
    alone = unmatched(rejection.targets, classes) if rejection is not None else []
    if not alone:
        return ""
    return f"the classifier does not know, so all images are kept of: {_named(alone, class_names)}"


def _named(classes: Sequence[int], names: Sequence[str]) -> str:
    return ", ".join(names[c] if c < len(names) else str(c) for c in classes)
