"""`varlit doctor`: the machine, the packages, the data and the weights: ok, warn or how to mend.

It must speak where everything else fails, so nothing outside the standard library is imported
at the top, and each check catches what the thing it checks may throw.
"""

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from varlit.cli.arguments import VerbParser
from varlit.cli.doctor.findings import Check, Finding
from varlit.cli.doctor.weights import check_weights

LEAST_PYTHON = (3, 11)
BAD_LIGHTNING = ("2.6.2", "2.6.3")
DISK_FIX_GIB, DISK_WARN_GIB = 1, 20
NUM_PROBED_IMAGES = 20
PACKAGES = (
    "torch", "torchvision", "lightning", "torchmetrics", "jsonargparse", "omegaconf",
    "safetensors", "scikit-learn", "tensorboard", "torch-fidelity", "lpips",
)  # fmt: skip
DATA_HELP = (
    "images to check, all of them: what data.root takes; with -c it sets data.root and wins over "
    "--data.root, which is opened only (stage 2: data.tokens)"
)
PAIR_REMEDY = "take both from one index: rm -rf .venv && make setup"


def build_parser() -> VerbParser:
    """The flags of `varlit doctor`."""
    parser = VerbParser("doctor", "Check versions, GPUs, disk, data and weights.")
    parser.add_argument("--data", help=DATA_HELP)
    parser.add_argument("--image_size", type=int, default=0, help="crop that must fit; 0 asks none")
    parser.add_argument("--duplicates", action="store_true", help="look for equal files too")
    parser.add_argument("--list", type=Path, metavar="FILE", help="write the bad names to a file")
    parser.add_argument(
        "--num_workers", type=int, default=-1, help="processes; -1: one for each CPU"
    )
    parser.add_argument("--quick", action="store_true", help="look at a few images only")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="where runs are written")
    parser.add_argument("--pair", action="store_true", help="check torch and torchvision only")
    add = parser.add_argument
    add("-c", "--config", "--recipe", metavar="RECIPE", help="what a run of it would lack here")
    add("--name", default="", help="the run, for -c; by default as fit names it")
    add("--gpus", default="auto", help="for -c: auto, a number, 0 = CPU")
    add("--audit", action="store_true", help="ask for known vulnerabilities of the packages")
    add("--licences", type=Path, metavar="PAGE", help="write the licences of all packages")
    add("--pins", type=Path, default=Path("constraints.txt"), help="packages to audit and to list")
    return parser


def main(argv: list[str]) -> int:
    """Print a line for each finding.

    Args:
        argv: What follows `varlit doctor`.

    Returns:
        1 if something is broken, else 0.
    """
    parser = build_parser()
    # What `fit` takes besides, such as --model.var.depth 20, changes the recipe.
    args, words = parser.parse_known_args(argv)
    if words and not args.config:
        parser.parse_args(argv)
    broken = 0
    for check in plan_checks(args, words):
        for verdict, subject, text in check():
            broken += verdict == "fix"
            print(f"{verdict:<5} {subject:<12} {text}", flush=True)
    if broken:
        print(f"{broken} to mend, marked `fix`.")
    return 1 if broken else 0


def plan_checks(args: argparse.Namespace, words: list[str]) -> list[Check]:
    """Choose what to look at.

    Args:
        args: The flags.
        words: Changes of the recipe.
    """
    if args.audit or args.licences:
        return [lambda: check_packages(args)]
    if args.pair:
        return [check_pair]
    checks: list[Check] = [check_versions, check_pair, check_gpus, check_weights]
    if args.config:
        checks.append(lambda: check_recipe(args, words))
    else:
        checks.append(lambda: check_disk(args.root))
    if args.data and not reads_tokens(args):
        checks.append(lambda: check_given(args))
    elif not args.config:
        checks.append(check_imagenet)
    return checks


def reads_tokens(args: argparse.Namespace) -> bool:
    """Whether `--data` is the token cache of a recipe of stage 2, and no images."""
    if not args.config:
        return False
    from varlit.cli.doctor.settings import find

    return find(args.config)[0] == "var"


def check_recipe(args: argparse.Namespace, words: list[str]) -> Iterator[Finding]:
    """Look at what a run of the recipe would lack here."""
    try:
        from varlit.cli.doctor import recipe, rehearsal  # noqa: F401  with all that fit imports
    except (ImportError, OSError, RuntimeError) as error:
        yield "fix", "recipe", f"cannot be looked at ({error}); make setup"
        return
    yield from recipe.check(args, words)


def check_packages(args: argparse.Namespace) -> Iterator[Finding]:
    """Look at the packages' vulnerabilities, or write down their licences."""
    from varlit.cli.doctor import audit, licences

    if args.audit:
        yield from audit.check(args.pins)
    if args.licences:
        yield from licences.write_page(args.pins, args.licences)


def check_versions() -> Iterator[Finding]:
    """Check Python and the packages that varlit stands on."""
    python = platform.python_version()
    if sys.version_info < LEAST_PYTHON:
        yield "fix", "python", f"{python}; varlit needs 3.11: make setup PYTHON=python3.11"
    else:
        yield "ok", "python", python
    missing, found = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    yield "ok", "packages", ", ".join(found)
    if missing:
        yield "fix", "packages", f"missing: {', '.join(missing)}; make setup"
    if any(f"lightning {version}" in found for version in BAD_LIGHTNING):
        yield (
            "fix",
            "lightning",
            "2.6.2 and 2.6.3 were malicious uploads; rm -rf .venv",
        )


def check_pair() -> Iterator[Finding]:
    """Import torch and torchvision together and run one compiled operator of torchvision."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield "fix", "torch", f"cannot be imported ({error}); make setup"
        return
    yield "ok", "torch", torch.__version__
    try:
        import torchvision

        boxes, scores = torch.zeros(1, 4), torch.zeros(1)
        torchvision.ops.nms(boxes, scores, 0.5)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        yield "fix", "torchvision", explain_pair(torch.__version__, error)
        return
    yield "ok", "torchvision", f"{torchvision.__version__}, fits torch"


def explain_pair(torch_version: str, error: Exception) -> str:
    """Say what is wrong when torchvision does not load beside torch."""
    try:
        vision = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return "not installed; make setup"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "torchvision::" in reason or "undefined symbol" in reason:
        return (
            f"{vision} was built for another torch than {torch_version} (such as a CPU-only torch "
            f"beside the registry's torchvision): {reason}. Remedy: {PAIR_REMEDY}"
        )
    return f"{vision} cannot be imported beside torch {torch_version}: {reason}. {PAIR_REMEDY}"


def check_gpus() -> Iterator[Finding]:
    """List the GPUs and whether they compute in bf16."""
    try:
        import torch
    except (ImportError, OSError):
        return
    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else "; this torch is built for CPUs only"
        yield "warn", "gpu", f"none found{built}: all runs on the CPU, CONF=digits is made for it"
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        yield "ok", f"gpu {index}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        yield "ok", "bf16", "supported"
    else:
        yield "warn", "bf16", "not supported here: runs fall back to 32-true, at half the speed"


def check_disk(root: Path) -> Iterator[Finding]:
    """Check that runs can be written, and that there is room for checkpoints."""
    place = root
    while not place.exists():
        place = place.absolute().parent
    if not os.access(place, os.W_OK):
        yield "fix", "disk", f"{place} cannot be written to; mend the rights or use --root"
        return
    free = shutil.disk_usage(place).free / 2**30
    text = f"{free:,.0f} GiB free in {place}"
    if free < DISK_FIX_GIB:
        yield "fix", "disk", f"{text}: too little for a checkpoint"
    elif free < DISK_WARN_GIB:
        yield "warn", "disk", f"{text}: checkpoints of large models take 4 to 32 GiB"
    else:
        yield "ok", "disk", text


def check_given(args: argparse.Namespace) -> Iterator[Finding]:
    """Look at the images that `--data` names."""
    try:
        from varlit.cli.doctor import data
    except (ImportError, OSError) as error:
        yield "fix", "data", f"cannot be looked at ({error}); make setup"
        return
    yield from data.check(args)


def check_imagenet() -> Iterator[Finding]:
    """Look at ImageNet where it is, quickly."""
    root = Path(os.environ.get("IMAGENET_DIR") or "data/imagenet").expanduser()
    subject = "imagenet"
    if not root.is_dir():
        remedy = "set IMAGENET_DIR, or use CONF=digits or CONF=folder DATA=..."
        yield "warn", subject, f"no folder {root}; {remedy}"
        return
    train = root / "train" if (root / "train").is_dir() else root
    classes = sorted(path for path in train.iterdir() if path.is_dir())
    if not classes:
        yield "warn", subject, f"{train} has no class folders; `varlit doctor --data {root}` tells"
        return
    yield "ok", subject, f"{len(classes):,} classes in {train}"
    if not (root / "val").is_dir():
        yield "warn", subject, f"no {root}/val: a part of the training images is held out"
    yield from _probe_images(subject, classes)


def _probe_images(subject: str, classes: list[Path]) -> Iterator[Finding]:
    """Decode an image of some of the classes."""
    try:
        from varlit.data.decoding import BrokenImageError, read_rgb
    except ImportError as error:
        yield "fix", "pillow", f"cannot be imported ({error}); make setup"
        return
    stride, sides = max(1, len(classes) // NUM_PROBED_IMAGES), []
    for folder in classes[::stride][:NUM_PROBED_IMAGES]:
        path = next((p for p in sorted(folder.iterdir()) if p.is_file()), None)
        if path is None:
            yield "warn", subject, f"{folder} is empty"
            continue
        try:
            sides.append(min(read_rgb(path).size))
        except BrokenImageError as error:
            yield "warn", subject, f"{path} cannot be read ({error})"
    if sides:
        yield (
            "ok",
            subject,
            f"{len(sides)} images decoded, shorter sides {min(sides)} to {max(sides)} px",
        )
