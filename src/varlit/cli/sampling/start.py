"""`varlit sample RUN --from PHOTO`: what the pictures start from."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from varlit.cli.arguments import VerbParser
from varlit.cli.photos import read_square
from varlit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from varlit.generation.editing.known import KnownTokens
    from varlit.generation.sampler import Sampler


@dataclass(frozen=True)
class Start:
    """A photo whose coarse token maps all images share."""

    photo: "Tensor"  # (1, 3, H, W)
    coarse: "Tensor"  # (1, 3, H, W), decoded from the maps that are kept
    tokens: "Tensor"  # (1, L)
    keep_scales: int
    last_kept: str  # name of the finest map that is kept, such as 04x04

    def known(self, sampler: "Sampler", num_images: int) -> "KnownTokens | None":
        """The same for each image of a batch."""
        from varlit.generation.editing.coarse import known_coarse

        return known_coarse(sampler.var, self.tokens, self.keep_scales, num_images)


def add_start_flags(parser: VerbParser) -> None:
    """The flags; without a photo the pictures start from nothing."""
    add = parser.add_argument
    add(
        "--from",
        dest="start",
        type=Path,
        metavar="PHOTO",
        help="keep the coarse scales of this photo and draw the finer ones: see --keep_scales",
    )
    add(
        "--keep_scales",
        type=int,
        help="how many scales of the photo to keep; half of them by default",
    )


def check_start(args: Namespace) -> None:
    """Refuse what needs no model to be seen.

    Raises:
        UserError: If scales are to be kept of nothing, or there is no such photo.
    """
    if args.start is None and args.keep_scales is not None:
        raise UserError("--keep_scales keeps scales of a photo; give one: --from photo.jpg")
    if args.start is not None and not args.start.is_file():
        raise UserError(f"--from {args.start}: there is no such file")


def open_start(args: Namespace, sampler: "Sampler") -> Start | None:
    """Encode the photo; `args.keep_scales` becomes what is kept.

    Raises:
        UserError: If the photo does not open, or there are not so many scales.
    """
    if args.start is None:
        return None
    from varlit.generation.editing.coarse import check_keep_scales

    tokenizer, scales = sampler.tokenizer, sampler.var.scales
    if args.keep_scales is None:
        args.keep_scales = max(1, scales.num_scales // 2)
    check_keep_scales(sampler.var, args.keep_scales)
    photo = read_square(args.start, tokenizer.config.image_size).unsqueeze(0)
    tokens = tokenizer.encode(photo.to(sampler.var.device))
    coarse = tokenizer.decode_prefix(tokens, args.keep_scales)
    return Start(photo, coarse.cpu(), tokens, args.keep_scales, scales.names[args.keep_scales - 1])
