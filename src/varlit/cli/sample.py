"""`varlit sample RUN`: draw images by class, and how they grow over the scales."""

from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from varlit.cli.arguments import (
    PRECISIONS,
    Count,
    VerbParser,
    check_writable,
    pick_device,
    takes_bf16,
)
from varlit.cli.rejection import add_flags, open_rejection, told
from varlit.cli.verbs import typed
from varlit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from varlit.generation.rejection import Rejection
    from varlit.generation.sampler import Drawn, Sampler, SamplingSettings

MAX_CLASSES_BY_DEFAULT = 10


def build_parser() -> VerbParser:
    """The flags of `varlit sample`."""
    parser = VerbParser("sample", "Draw images of chosen classes with a trained VAR.")
    add = parser.add_argument
    add("run", help="name of a VAR run, or its folder")
    add("--classes", default="", help="numbers or names, such as 207,360; empty = the first ten")
    add("--per_class", type=int, default=8, help="images of each class, a row")
    add("--cfg_scale", type=float, default=1.5, help="guidance; 0 = none")
    add("--guidance", default="var", help="var = official ramp over the scales, constant = usual")
    add("--top_k", type=int, default=900, help="draw among the k likeliest codes; 0 = all")
    add("--top_p", type=float, default=0.96, help="draw within this probability; 0 = all")
    add("--seed", type=int, default=0, help="image i of a class is drawn from seed + i")
    add("--out", type=Path, default=Path("samples.png"), help="the picture")
    add("--more_smooth", action="store_true", help="blend codes: smoother looks, worse FID")
    add("--growing", action="store_true", help="also draw OUT-growing.png, scale by scale")
    add("--root", default="runs", help="where runs live")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--batch_size", type=int, default=64, help="images drawn at a time; fewer need less memory")
    add("--precision", choices=PRECISIONS, default="auto", help="auto = bf16 on GPUs that have it")
    add_flags(parser)
    return parser


def main(argv: list[str]) -> int:
    """Draw and write the picture.

    Args:
        argv: What follows `varlit sample`.
    """
    args = build_parser().parse_args(argv)
    for flag in ("per_class", "batch_size"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} must be at least 1; got {getattr(args, flag)}")
    check_writable(args.out)
    import torch

    from varlit.checkpoints.store import find_model
    from varlit.generation.requests import as_seeds
    from varlit.generation.sampler import Sampler, SamplingSettings
    from varlit.models.files import load_var
    from varlit.viz.grids import image_grid, save_png
    from varlit.viz.pyramids import growing_strip

    settings = SamplingSettings(
        args.cfg_scale, args.top_k, args.top_p, args.guidance, args.more_smooth
    )
    device = pick_device(args.device)
    loaded = load_var(find_model(args.run, args.root))
    classes = parse_classes(args.classes, loaded.var.num_classes, loaded.class_names)
    rejection = open_rejection(args, loaded.var, loaded.class_names, classes, args.per_class)
    sampler = Sampler(loaded.var.to(device), loaded.tokenizer.to(device))
    labels = torch.tensor(classes).repeat_interleave(args.per_class)
    seeds = as_seeds(args.seed, None, args.per_class) or []
    parts = draw_in_batches(sampler, labels, seeds * len(classes), settings, args, rejection)
    names = [class_name(c, loaded.class_names) for c in classes]
    images = torch.cat([part.images for part in parts])
    save_png(image_grid(images, args.per_class, row_labels=names), args.out)
    print(f"{len(images)} images of {len(classes)} classes: {args.out}")
    if rejection is not None:
        print(told(rejection.cost))
    if args.growing:
        firsts = slice(None, None, args.per_class)
        frames = [torch.cat(f)[firsts] for f in zip(*(p.frames for p in parts), strict=True)]
        path = args.out.with_name(f"{args.out.stem}-growing.png")
        save_png(growing_strip(frames, loaded.var.scales.names, row_labels=names), path)
        print(f"growing over the scales: {path}")
    print(repeat_line(args))
    return 0


def draw_in_batches(
    sampler: "Sampler",
    labels: "Tensor",
    seeds: Sequence[int],
    settings: "SamplingSettings",
    args: Namespace,
    rejection: "Rejection | None" = None,
) -> "list[Drawn]":
    """Draw an image for each of `labels` (N,) and `seeds`, or choose it among several.

    Raises:
        UserError: If a batch does not fit into the memory of the GPU.
    """
    import torch

    from varlit.generation.rejection import keep_all
    from varlit.generation.requests import draw_batches
    from varlit.generation.sampler import ImageSeeds

    device, size = sampler.var.device.type, args.batch_size
    is_bf16 = takes_bf16(args.precision, device)
    parts: list[Drawn] = []
    wanted = labels.tolist()
    count = Count("drawn", rejection.num_candidates(wanted) if rejection else len(wanted))

    def draw(batch: "Tensor", batch_seeds: list[int]) -> "Drawn":
        made = sampler.draw(batch, settings, ImageSeeds(batch_seeds), with_frames=args.growing)
        count.reach(count.done + len(batch))
        return made

    try:
        with torch.autocast(device, torch.bfloat16, enabled=is_bf16):
            if rejection is not None:
                return [keep_all(rejection.keep(draw, wanted, seeds, size)).drawn]
            for part in draw_batches(
                sampler, labels, settings, seeds, size, with_frames=args.growing
            ):
                parts.append(part)
                count.reach(min(len(parts) * size, len(labels)))
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of GPU memory at --batch_size {size}; try --batch_size {max(1, size // 2)}"
        ) from error
    return parts


def parse_classes(text: str, num_classes: int, names: Sequence[str]) -> list[int]:
    """Turn `207,360` or `daisy,rose` into labels; case matters only where names differ in it alone.

    Raises:
        UserError: If one is unknown; the range or the names are given.
    """
    if not text:
        return list(range(min(num_classes, MAX_CLASSES_BY_DEFAULT)))
    exact = {name: i for i, name in enumerate(names)}
    folded = Counter(name.casefold() for name in names)
    loose = {name.casefold(): i for name, i in exact.items() if folded[name.casefold()] == 1}
    labels = []
    for word in (part.strip() for part in text.split(",")):
        number = int(word) if word.isdecimal() else -1
        label = exact.get(word, loose.get(word.casefold(), number))
        if not 0 <= label < num_classes:
            known = f" or names such as {', '.join(names[:5])}" if names else ""
            raise UserError(f"--classes: got `{word}`, expected 0..{num_classes - 1}{known}")
        labels.append(label)
    return labels


def class_name(label: int, names: Sequence[str]) -> str:
    """The name of a class where it is known, else its number."""
    return names[label] if label < len(names) else str(label)


def repeat_line(args: Namespace) -> str:
    """The command that draws the next picture of the same kind."""
    seed = args.seed + args.per_class
    return "next: " + typed(f"varlit sample {args.run} --seed {seed} --cfg_scale 3")
