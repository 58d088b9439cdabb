"""`varlit sample RUN`: draw images by class, and how they grow over the scales."""

from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from varlit.cli.arguments import (
    PRECISIONS,
    VerbParser,
    check_apart,
    check_seeds,
    check_writable,
    drawing_dtype,
    pick_device,
)
from varlit.cli.sampling.drawing import draw_in_batches
from varlit.cli.sampling.next_line import next_line
from varlit.cli.sampling.pictures import beside_out, write_pictures
from varlit.cli.sampling.rejection import add_flags, open_rejection, told
from varlit.cli.sampling.start import add_start_flags, check_start, open_start
from varlit.errors import UserError

MAX_CLASSES_BY_DEFAULT = 10
NO_CLASS = "none"
DEFAULT_ROOT = "runs"


def build_parser() -> VerbParser:
    """The flags of `varlit sample`."""
    parser = VerbParser("sample", "Draw images of chosen classes with a trained VAR.")
    add = parser.add_argument
    add("run", help="name of a VAR run, or its folder")
    add(
        "--classes",
        default="",
        help="numbers or names, such as 207,360; none = no class; empty = the first ten, or with "
        "--from none",
    )
    add("--per_class", type=int, default=8, help="images of each class, a row")
    add("--cfg_scale", type=float, default=1.5, help="guidance; 0 = none")
    add("--guidance", default="var", help="var = official ramp over the scales, constant = usual")
    add("--top_k", type=int, default=900, help="draw among the k likeliest codes; 0 = all")
    add("--top_p", type=float, default=0.96, help="draw within this probability; 0 = all")
    add(
        "--draw",
        choices=("exact", "sorted"),
        default="exact",
        help="sorted = draw among the sorted top-k: faster, as likely, other pictures",
    )
    add("--seed", type=int, default=0, help="image i of a class is drawn from seed + i")
    add("--out", type=Path, default=Path("samples.png"), help="the picture")
    add("--more_smooth", action="store_true", help="blend codes: smoother looks, worse FID")
    add("--growing", action="store_true", help="also draw OUT-growing.png, scale by scale")
    add("--gif", action="store_true", help="also draw OUT-growing.gif, the images as they grow")
    add_start_flags(parser)
    add("--root", default=DEFAULT_ROOT, help="where runs live")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--batch_size", type=int, default=64, help="images drawn at a time; fewer need less memory")
    add("--precision", choices=PRECISIONS, default="auto", help="auto = bf16 on GPUs that have it")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument(
        "--fast",
        action="store_true",
        help="compile too, minutes before the first picture; by default GPUs record CUDA graphs, "
        "and compile for 10,000 images and more",
    )
    speed.add_argument("--no_fast", action="store_true", help="neither: one kernel at a time")
    add_flags(parser)
    return parser


def main(argv: list[str]) -> int:
    """Draw and write the pictures.

    Args:
        argv: What follows `varlit sample`.
    """
    args = build_parser().parse_args(argv)
    check_flags(args)
    import torch

    from varlit.checkpoints.store import find_model
    from varlit.generation.recorded.compiled import open_sampler
    from varlit.generation.requests import as_seeds
    from varlit.generation.sampler import SamplingSettings
    from varlit.models.files import load_var

    settings = SamplingSettings(
        args.cfg_scale, args.top_k, args.top_p, args.guidance, args.more_smooth, draw=args.draw
    )
    device = pick_device(args.device)
    loaded = load_var(find_model(args.run, args.root))
    wanted = args.classes or (NO_CLASS if args.start else "")
    classes = parse_classes(wanted, loaded.var.num_classes, loaded.class_names)
    fast = False if args.no_fast else args.fast or None
    count = len(classes) * args.per_class
    var, tokenizer = loaded.var.to(device), loaded.tokenizer.to(device)
    dtype = drawing_dtype(args.precision, device)
    sampler = open_sampler(var, tokenizer, fast, dtype=dtype, num_images=count)
    start = open_start(args, sampler)
    rejection = open_rejection(args, loaded.var, loaded.class_names, classes, args.per_class)
    labels = torch.tensor(classes).repeat_interleave(args.per_class)
    seeds = (as_seeds(args.seed, None, args.per_class) or []) * len(classes)
    drawn = draw_in_batches(sampler, labels, seeds, settings, args, rejection, start)
    names = [class_name(c, loaded.class_names, loaded.var.num_classes) for c in classes]
    write_pictures(drawn, names, loaded.var.steps.frame_names, args, start)
    if rejection is not None:
        print(told(rejection.cost.to_dict()))
    print(next_line("sample", argv, args.seed + args.per_class, args.out))
    return 0


def check_flags(args: Namespace) -> None:
    """Refuse what needs no model to be seen.

    Raises:
        UserError: If a number or a combination is impossible, or the picture cannot be written.
    """
    for flag in ("per_class", "batch_size"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} must be at least 1; got {getattr(args, flag)}")
    check_seeds(args.seed, args.per_class)
    check_start(args)
    check_writable(args.out)
    kinds = ["png"] * args.growing + ["gif"] * args.gif
    check_apart([args.out, *(beside_out(args.out, kind) for kind in kinds)], [args.start])


def parse_classes(text: str, num_classes: int, names: Sequence[str]) -> list[int]:
    """Turn `207,360` or `daisy,rose` into labels; case matters only where names differ in it alone.

    `none` is the unconditional class; a class of that very name goes by its number. `#3` is class
    3, also where another one is called 3.

    Raises:
        UserError: If one is unknown, where the range or the names are given; or there twice.
    """
    if not text:
        return list(range(min(num_classes, MAX_CLASSES_BY_DEFAULT)))
    exact = {name: i for i, name in enumerate(names)}
    folded = Counter(name.casefold() for name in names)
    loose = {name.casefold(): i for name, i in exact.items() if folded[name.casefold()] == 1}
    labels = list[int]()
    for word in (part.strip() for part in text.split(",")):
        is_number = word.startswith("#")
        digits = word.removeprefix("#")
        number = int(digits) if digits.isdecimal() else -1
        label = number if is_number else exact.get(word, loose.get(word.casefold(), number))
        if word == NO_CLASS:
            label = num_classes
        elif not 0 <= label < num_classes:
            known = f" or names such as {', '.join(names[:5])}" if names else ""
            raise UserError(f"--classes: got `{word}`, expected 0..{num_classes - 1}{known}")
        if label in labels:
            raise UserError(
                f"--classes: `{word}` is given twice and would draw the same pictures; give each "
                "class once, and --per_class for more of it"
            )
        labels.append(label)
    return labels


def class_name(label: int, names: Sequence[str], num_classes: int) -> str:
    """The name of a class where it is known, else its number."""
    if label == num_classes:
        return "no class"
    return names[label] if label < len(names) else str(label)
