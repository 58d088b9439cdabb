"""Flags of rejection sampling, the classifier that they name, and what it took."""

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from varlit.cli.arguments import VerbParser
from varlit.errors import UserError

if TYPE_CHECKING:
    from varlit.generation.rejection import Rejection
    from varlit.generation.rejection_rule import RejectionCost
    from varlit.models.var import VAR

NONE = "-"


def add_flags(parser: VerbParser) -> None:
    """The flags; `--keep 1` is no rejection."""
    add = parser.add_argument
    add("--keep", type=float, default=1.0, help="share of the images drawn that is kept, by class")
    add("--classifier", default="", help="torchvision:NAME, timm:NAME or mobilenet_v2")
    add("--classifier_weights", default="", help="its file, or download; else $VARLIT_CLASSIFIER")
    add(
        "--classifier_classes",
        default="",
        help="its output for each class of the model, such as 985,-,3 (- = none); else by name",
    )
    add(
        "--unmatched",
        choices=("stop", "keep"),
        default="stop",
        help="classes that the classifier does not know: stop, or keep all images of them",
    )


def open_rejection(
    args: Namespace,
    var: "VAR",
    class_names: Sequence[str],
    classes: Sequence[int],
    group_size: int,
) -> "Rejection | None":
    """What chooses among the images, checked against the classes before any is drawn.

    Args:
        args: With the flags of `add_flags`.
        var: What draws.
        class_names: Of the VAR, where known.
        classes: Those that will be drawn.
        group_size: Images of a class that are chosen together.

    Returns:
        None where everything is kept.

    Raises:
        UserError: If flags, classifier and classes do not go together.
    """
    from varlit.generation.rejection_rule import RejectionSettings

    settings = RejectionSettings(args.keep, group_size)
    if args.keep == 1.0:
        if args.classifier:
            raise UserError("--classifier chooses nothing at --keep 1; try --keep 0.25")
        return None
    if not args.classifier:
        raise UserError("--keep below 1 needs --classifier torchvision:NAME, timm:NAME or another")
    from varlit.generation.counterparts import counterparts, unmatched
    from varlit.generation.rejection import Rejection
    from varlit.models.classifier import open_classifier

    classifier = open_classifier(args.classifier, args.classifier_weights or None)
    targets = counterparts(
        var.num_classes,
        class_names,
        classifier.num_classes,
        classifier.class_names,
        parse_outputs(args.classifier_classes),
    )
    if alone := unmatched(targets, classes):
        names = ", ".join(class_names[c] if c < len(class_names) else str(c) for c in alone)
        if args.unmatched == "stop":
            raise UserError(
                f"{args.classifier} has no class for: {names}. Leave them out (--classes), list "
                "outputs (--classifier_classes), or keep all images of them (--unmatched keep)"
            )
        print(f"the classifier does not know, so all images are kept of: {names}")
    return Rejection(classifier, targets, settings)


def parse_outputs(text: str) -> list[int | None] | None:
    """Turn `985,-,3` into outputs; None where nothing was given.

    Raises:
        UserError: If a part is neither a number nor `-`.
    """
    if not text:
        return None
    parts = [part.strip() for part in text.split(",")]
    if wrong := [part for part in parts if part != NONE and not part.isdecimal()]:
        raise UserError(
            f"--classifier_classes: got `{wrong[0]}`, expected numbers of outputs, or {NONE} for a "
            "class that the classifier does not know"
        )
    return [None if part == NONE else int(part) for part in parts]


def told(cost: "RejectionCost") -> str:
    """What it took, in a line or two."""
    found = cost.to_dict()
    rest = f", and all {cost.num_unjudged:,} of other classes" if cost.num_unjudged else ""
    return (
        f"kept {cost.num_kept:,} of {cost.num_drawn:,} images drawn "
        f"({found['acceptance_share']:.1%}){rest}; {found['seconds']:.1f} s, of which the "
        f"classifier took {found['classifier_share_of_time']:.0%}\n"
        f"first guess of the classifier: {found['top1_drawn']:.0%} of all that were drawn, "
        f"{found['top1_kept']:.0%} of those kept"
    )
