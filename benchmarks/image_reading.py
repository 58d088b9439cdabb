"""Images from files to batches: class folders against torchvision's, ten crops against ten passes.

python benchmarks/image_reading.py [--data FOLDER] [--photo_px 2000] [--out benchmarks/results]

One process without workers, as each worker of a loader runs. Without --data the files are smooth
noise of 500 x 375 px, ImageNet's usual size, or of --photo_px, as JPEG of quality 92.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from harness.options import Benchmark, build_parser, compete, exit_code, resolve
from harness.stopwatch import Lap, Rival, lap_of
from PIL import Image
from torchvision import datasets, transforms

from varlit.data.images import ImageDataModule
from varlit.data.loader import ResumableLoader
from varlit.data.order import EncodingBatches

FOLDERS = "folders, ImageFolder + DataLoader (reference)"
OURS = "folders (ours)"
DRAFT = "folders, jpeg_draft (ours)"
TEN_PASSES = "10 crops to encode, a pass each (reference)"
ONE_DECODE = "10 crops to encode, one decode (ours)"
NUM_CROPS = 10
SIZES = {"tiny": (32, 4), "imagenet256": (256, 32), "photos64": (64, 64)}
"""Side of the crop in pixels, images of a batch."""


def write_photos(folder: Path, width_px: int, num_images: int = 64) -> None:
    """Smooth noise, which JPEG compresses about as photographs."""
    generator = np.random.default_rng(0)
    height_px = width_px * 3 // 4
    for number in range(num_images):
        coarse = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize((width_px, height_px), Image.Resampling.BICUBIC)
        grain = generator.normal(0, 6, (height_px, width_px, 3))
        pixels = np.clip(np.asarray(photo) + grain, 0, 255).astype(np.uint8)
        path = folder / "train" / f"class{number % 2}" / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=92)


def batches_of(loader: object) -> Iterator[object]:
    """The loader's batches, epoch after epoch."""
    for _ in cycle([0]):
        yield from loader  # type: ignore[attr-defined]


def torchvision_loader(root: Path, side: int, batch_size: int) -> object:
    """The official transforms, as they are mostly written."""
    transform = transforms.Compose(
        [
            transforms.Resize(round(side * 1.125), transforms.InterpolationMode.LANCZOS),
            transforms.RandomCrop(side),
            transforms.ToTensor(),
            transforms.Normalize(0.5, 0.5),
        ]
    )
    dataset = datasets.ImageFolder(str(root / "train"), transform)
    return torch.utils.data.DataLoader(dataset, batch_size, shuffle=True, drop_last=True)


def build_rivals(root: Path, side: int, batch_size: int) -> list[Rival]:
    """Rows of the table."""

    def data(draft: bool = False) -> ImageDataModule:
        return ImageDataModule(
            str(root),
            image_size=side,
            batch_size=batch_size,
            num_workers=0,
            val_fraction=0,
            jpeg_draft=draft,
            small_images="upscale",
        )

    def encoding(num_passes: int) -> ResumableLoader:
        module = data()
        source = module.encoding_source("train")
        assert source is not None
        views = range(NUM_CROPS // num_passes)
        # A pass that knows of no other decodes every image anew: one crop of it a batch row.
        return module.loader(source, EncodingBatches([range(len(source))], views, batch_size))

    def lap(make: Callable[[], object]) -> Callable[[], Lap]:
        def build() -> Lap:
            batches = batches_of(make())
            return lap_of(lambda: next(batches), torch.device("cpu"))

        return build

    rows: list[tuple[str, Callable[[], object], str]] = [
        (FOLDERS, lambda: torchvision_loader(root, side, batch_size), ""),
        (OURS, lambda: data().train_dataloader(), FOLDERS),
        (DRAFT, lambda: data(draft=True).train_dataloader(), FOLDERS),
        (TEN_PASSES, lambda: encoding(NUM_CROPS), ""),
        (ONE_DECODE, lambda: encoding(1), TEN_PASSES),
    ]
    return [Rival(name, lap(make), batch_size, ref, is_counted=False) for name, make, ref in rows]


def main(words: list[str]) -> int:
    """Run the benchmark.

    Args:
        words: The command line.
    """
    parser = build_parser("Time of reading images from class folders.", list(SIZES))
    parser.add_argument("--data", type=Path, help="a folder with train/<class>/<image>")
    parser.add_argument("--photo_px", type=int, default=500, help="width of the made files")
    args = resolve(parser.parse_args(words), cpu_size="imagenet256", cuda_size="imagenet256")
    side, batch_size = SIZES[args.size]
    batch_size = args.batch or batch_size
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        root = args.data or Path(made)
        if args.data is None:
            write_photos(root, args.photo_px)
        settings = {
            "files": args.data.name if args.data else f"noise {args.photo_px} px wide, JPEG 92",
            "crop": f"{side} px",
            "batch": batch_size,
            "rounds": args.rounds,
        }
        notes = (
            "One process without workers; in the rows of ten crops, images/s counts crops.",
            "Ours resizes only what a random crop shows; jpeg_draft decodes large JPEGs at a "
            "fraction. What that does to pixels stands in docs/your-data.md.",
        )
        rivals = build_rivals(root, side, batch_size)
        return compete(Benchmark(Path(__file__), rivals, settings, notes), args, words)


if __name__ == "__main__":
    sys.exit(exit_code(main))
