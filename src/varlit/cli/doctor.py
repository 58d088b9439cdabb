"""`varlit doctor`: the machine, the packages, the data and the weights: ok, warn or how to mend.

It must speak where everything else fails, so nothing outside the standard library is imported
at the top, and each check catches what the thing it checks may throw.
"""

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

from varlit.cli.arguments import VerbParser

Verdict = Literal["ok", "warn", "fix"]
Finding = tuple[Verdict, str, str]

LEAST_PYTHON = (3, 11)
BAD_LIGHTNING = ("2.6.2", "2.6.3")
DISK_FIX_GIB, DISK_WARN_GIB = 1, 20
NUM_PROBED_IMAGES = 20
PACKAGES = (
    "torch", "torchvision", "lightning", "torchmetrics", "jsonargparse", "omegaconf",
    "safetensors", "scikit-learn", "tensorboard", "torch-fidelity", "lpips",
)  # fmt: skip
PAIR_REMEDY = "take both from one index: rm -rf .venv && make setup"


def build_parser() -> VerbParser:
    """The flags of `varlit doctor`."""
    parser = VerbParser("doctor", "Check versions, GPUs, disk, data and weights.")
    parser.add_argument("--data", help="images to check, all of them: what data.root takes")
    parser.add_argument("--image_size", type=int, default=0, help="crop that must fit; 0 asks none")
    parser.add_argument("--duplicates", action="store_true", help="look for equal files too")
    parser.add_argument("--list", type=Path, metavar="FILE", help="write the bad names to a file")
    parser.add_argument(
        "--num_workers", type=int, default=-1, help="processes; -1: one for each CPU"
    )
    parser.add_argument("--quick", action="store_true", help="look at a few images only")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="where runs are written")
    parser.add_argument("--pair", action="store_true", help="check torch and torchvision only")
    return parser


def main(argv: list[str]) -> int:
    """Print a line for each finding.

    Args:
        argv: What follows `varlit doctor`.

    Returns:
        1 if something is broken, else 0.
    """
    args = build_parser().parse_args(argv)
    checks: list[Callable[[], Iterator[Finding]]] = [check_pair]
    if not args.pair:
        checks = [check_versions, check_pair, check_gpus, lambda: check_disk(args.root)]
        checks += [lambda: check_given(args) if args.data else check_imagenet(), check_weights]
    broken = 0
    for check in checks:
        for verdict, subject, text in check():
            broken += verdict == "fix"
            print(f"{verdict:<5} {subject:<12} {text}", flush=True)
    if broken:
        print(f"{broken} to mend, marked `fix`.")
    return 1 if broken else 0


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
        from varlit.cli import doctor_data
    except (ImportError, OSError) as error:
        yield "fix", "data", f"cannot be looked at ({error}); make setup"
        return
    yield from doctor_data.check(args)


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
        from PIL import Image
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
            with Image.open(path) as image:
                image.load()
                sides.append(min(image.size))
        except (OSError, ValueError) as error:
            yield "warn", subject, f"{path} cannot be read ({type(error).__name__})"
    if sides:
        yield (
            "ok",
            subject,
            f"{len(sides)} images decoded, shorter sides {min(sides)} to {max(sides)} px",
        )


def check_weights() -> Iterator[Finding]:
    """Look for the pretrained networks that measures and losses need; download nothing."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser()
    hub = home / "hub" / "checkpoints"
    wanted = (
        ("inception", "VARLIT_INCEPTION", "weights-inception-2015-12-05-6726825d.pth", "FID"),
        ("vgg16", "VARLIT_LPIPS_VGG", "vgg16-397923af.pth", "LPIPS; or perceptual_weight 0"),
    )
    for subject, variable, name, use in wanted:
        given = os.environ.get(variable)
        path = Path(given).expanduser() if given else hub / name
        if path.is_file():
            yield "ok", subject, str(path)
        elif given:
            yield "fix", subject, f"${variable} names {path}, which is no file"
        else:
            yield (
                "warn",
                subject,
                f"not at {path}: downloaded at first use, or set ${variable} ({use})",
            )
