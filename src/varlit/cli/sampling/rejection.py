"""Flags of rejection sampling, the classifier that they name, and what it took."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from varlit.cli.arguments import VerbParser

if TYPE_CHECKING:
    from varlit.generation.rejection.choice import Rejection
    from varlit.models.var import VAR


def add_flags(parser: VerbParser) -> None:
    """The flags; `--keep 1` is no rejection."""
    add = parser.add_argument
    add("--keep", type=float, default=1.0, help="share of the images drawn that is kept, by class")
    add("--classifier", default="", help="torchvision:NAME, timm:NAME or mobilenet_v2")
    add("--classifier_weights", default="", help="its file, or download; else $VARLIT_CLASSIFIER")
    add(
        "--classifier_classes",
        default="",
        help="its output for each class, such as 985,-,3 (- = none; where it comes first write "
        "--classifier_classes=-,985); else by name",
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
    from varlit.generation.rejection.request import RejectionRequest, free_classes

    asked = {field.name: getattr(args, field.name) for field in fields(RejectionRequest)}
    found = RejectionRequest(**asked).open(var.num_classes, class_names, classes, group_size)
    if line := free_classes(found, class_names, classes):
        print(line)
    return found


def told(found: Mapping[str, Any]) -> str:
    """What it took, in two lines.

    Args:
        found: By `RejectionCost.to_dict`.
    """
    num_free = found["images_unjudged"]
    rest = f", and all {num_free:,} of other classes" if num_free else ""
    return (
        f"kept {found['images_kept']:,} of {found['images_drawn']:,} images drawn "
        f"({found['acceptance_share']:.1%}){rest}; {found['seconds']:.1f} s, of which the "
        f"classifier took {found['classifier_share_of_time']:.0%}\n"
        f"first guess of the classifier: {found['top1_drawn']:.0%} of all that were drawn, "
        f"{found['top1_kept']:.0%} of those kept"
    )
