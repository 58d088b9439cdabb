"""`varlit edit RUN PHOTO`: draw a part of a photo anew, or what lies beyond its edge."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from varlit.cli.arguments import (
    PRECISIONS,
    VerbParser,
    check_apart,
    check_seeds,
    check_writable,
    pick_device,
)
from varlit.cli.editing.drawing import draw_variants, is_beyond, open_task, settings_of
from varlit.cli.editing.inputs import is_ratio
from varlit.cli.sampling.next_line import next_line
from varlit.errors import UserError

if TYPE_CHECKING:
    from varlit.checkpoints.pretrained_var import PretrainedVAR

MAX_CANVAS_SEED = 2**62
"""Each square of a canvas has its own seeds, counted up from those that were given."""


def build_parser() -> VerbParser:
    """The flags of `varlit edit`."""
    parser = VerbParser("edit", "Draw a part of a photo anew, or what lies beyond its edge.")
    add = parser.add_argument
    add("run", help="name of a VAR run, or its folder")
    add("photo", type=Path, help="image file; for --box and --mask its centre square is taken")
    add("--box", default="", help="left,top,right,bottom of what is drawn anew, in 0..1")
    add("--mask", type=Path, help="image of the photo's size; what is white is drawn anew")
    add("--invert", action="store_true", help="draw what is outside the box or mask")
    add("--outpaint", default="", help="draw beyond left,right,top,bottom or all, or to 16:9")
    add(
        "--extend",
        type=float,
        help="how far beyond a side, in sides of the photo; half of one if not given",
    )
    add(
        "--place", type=float, default=1.0, help="shrink the photo first, to this share of a square"
    )
    add(
        "--class", dest="label", default="", help="number or name; empty = go on with what is there"
    )
    add("--variants", type=int, default=4, help="pictures; number i is drawn from seed + i")
    add("--paste", action="store_true", help="put the photo's own pixels back around what is new")
    add("--feather_px", type=int, help="width of the soft edge then; half a cell if not given")
    add("--free_first_scale", action="store_true", help="draw the 1x1 map too, for another class")
    add("--hide_masked", action="store_true", help="let nothing under the mask be remembered")
    add("--refit_known", action="store_true", help="correct the rest for what was drawn beside it")
    add("--cfg_scale", type=float, default=3.0, help="guidance; 0 = none")
    add("--guidance", default="var", help="var = official ramp over the scales, constant = usual")
    add("--top_k", type=int, default=900, help="draw among the k likeliest codes; 0 = all")
    add("--top_p", type=float, default=0.95, help="draw within this probability; 0 = all")
    add("--more_smooth", action="store_true", help="blend codes: smoother looks")
    add("--seed", type=int, default=0, help="of the first picture")
    add("--out", type=Path, default=Path("edited.png"), help="the sheet of all pictures")
    add("--save_each", action="store_true", help="also write OUT-SEED.png for each picture")
    add("--root", default="runs", help="where runs live")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--batch_size", type=int, default=16, help="pictures drawn at a time")
    add("--precision", choices=PRECISIONS, default="auto", help="auto = bf16 on GPUs that have it")
    return parser


def main(argv: list[str]) -> int:
    """Draw, and write the sheet.

    Args:
        argv: What follows `varlit edit`.
    """
    args = build_parser().parse_args(argv)
    check_flags(args)
    from varlit.checkpoints.pretrained import PretrainedVAR, load
    from varlit.viz.grids import save_png, to_uint8
    from varlit.viz.masks import edit_sheet

    settings_of(args)  # what is wrong with them is said before the model is read
    device = pick_device(args.device)
    var = load(args.run, args.root)
    if not isinstance(var, PretrainedVAR):
        raise UserError(f"{args.run} holds a tokenizer, not a VAR; an edit is drawn by a VAR")
    label = class_of(args.label, var)
    task = open_task(args, var.tokenizer.config.image_size)
    print(task.remark)
    variants = draw_variants(var.to(device), task, args, label)
    seeds = range(args.seed, args.seed + args.variants)
    labels = [f"seed {seed}" for seed in seeds]
    original, is_new = task.placed.images[0], task.placed.is_new
    save_png(edit_sheet(original, is_new, variants, labels=labels), args.out)
    print(f"original, mask and {args.variants} pictures: {args.out}")
    if args.save_each:
        paths = paths_of_each(args)
        for picture, path in zip(to_uint8(variants), paths, strict=True):
            save_png(picture, path)
        print(f"each alone: {', '.join(str(path) for path in paths)}")
    print(next_line("edit", argv, args.seed + args.variants, args.out))
    return 0


def check_flags(args: Namespace) -> None:
    """Refuse what needs no model to be seen.

    Raises:
        UserError: If a flag has an impossible value, or it is not one thing that is asked for.
    """
    for flag in ("variants", "batch_size"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} must be at least 1; got {getattr(args, flag)}")
    if not 0 < args.place <= 1:
        raise UserError(f"--place must lie above 0 and up to 1; got {args.place}")
    if bool(args.box) + (args.mask is not None) + is_beyond(args) != 1:
        raise UserError(
            "say what is drawn anew by one of: --box left,top,right,bottom, --mask FILE, or beyond "
            "the photo --outpaint left,right and --place 0.6"
        )
    check_beyond(args)
    if args.feather_px is not None and not (args.paste or is_beyond(args)):
        raise UserError(
            "--feather_px is the edge of the pixels that --paste puts back; add --paste"
        )
    check_seeds(args.seed, args.variants, MAX_CANVAS_SEED if is_beyond(args) else 2**63)
    check_writable(args.out)
    outputs = [args.out, *(paths_of_each(args) if args.save_each else [])]
    check_apart(outputs, [args.photo, args.mask])


def check_beyond(args: Namespace) -> None:
    """Refuse flags that a canvas does not read, and those of a canvas where there is none.

    Raises:
        UserError: If there is one.
    """
    if args.extend is not None and (not args.outpaint or is_ratio(args.outpaint)):
        raise UserError(
            "--extend is how far to draw beyond the sides that --outpaint names, such as "
            "--outpaint left,right; here it changes nothing, so leave it out"
        )
    if not is_beyond(args):
        return
    if args.invert:
        raise UserError("--invert turns a --box or --mask around; --outpaint has neither")
    for flag in ("paste", "hide_masked", "refit_known"):
        if getattr(args, flag):
            raise UserError(
                f"--{flag} is for a --box or --mask; beyond the photo it is always so, so leave it "
                "out"
            )


def paths_of_each(args: Namespace) -> list[Path]:
    """Where --save_each writes."""
    seeds = range(args.seed, args.seed + args.variants)
    return [args.out.with_name(f"{args.out.stem}-{seed}.png") for seed in seeds]


def class_of(text: str, var: "PretrainedVAR") -> int | None:
    """The class by number or name; None where none was given.

    Raises:
        UserError: If it is unknown, or there are several.
    """
    from varlit.cli.sampling.sample import parse_classes

    if not text:
        return None
    try:
        labels = parse_classes(text, var.num_classes, var.class_names)
    except UserError as error:
        raise UserError(str(error).replace("--classes", "--class")) from None
    if len(labels) > 1:
        raise UserError(f"--class takes one class; got `{text}`")
    return labels[0]
