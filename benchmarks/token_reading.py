"""Token pyramids from disk to batches: the cache against a file an image, and against no cache.

python benchmarks/token_reading.py [--size imagenet256] [--out benchmarks/results]

The page cache is warm and the order random, as in every epoch but the first.
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
from tokenizer_sizes import SEED, SIZES, Size, random_images
from torch.utils.data import DataLoader, Dataset

from varlit.data.tokens.manifest import CacheSpec, begin_cache
from varlit.data.tokens.module import TokenDataModule
from varlit.data.tokens.writer import TokenShardWriter, merge_manifest
from varlit.models.vqvae import VQVAE

FILES = "a .npy for each image, as LlamaGen (reference)"
MAPPED = "cache, memory map (ours)"
IN_RAM = "cache, resident in RAM (ours)"
ON_THE_FLY = "tokenise in the step, pixels in memory (reference)"
BATCH = 256
NUM_CROPS = 10


class FilePerImage(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """LlamaGen's layout: codes (1, crops, L) int64 and label (1,) int64, a file each."""

    def __init__(self, folder: Path, num_images: int) -> None:
        self.folder, self.num_images = folder, num_images

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        codes = np.load(self.folder / f"{row}.codes.npy")
        crop = torch.randint(codes.shape[1], (1,)).item()
        label = np.load(self.folder / f"{row}.label.npy")
        return torch.from_numpy(codes[0, crop]), torch.from_numpy(label)


def write_both(folder: Path, size: Size, num_images: int) -> None:
    """The same random pyramids in both layouts."""
    config = size.tokenizer
    spec = CacheSpec(
        tokenizer_hash="0" * 64,
        scales=config.scales,
        codebook_size=config.codebook_size,
        codebook_dim=config.codebook_dim,
        class_names=("a", "b"),
        num_crops={"train": NUM_CROPS},
        shard_size=16_384,
        num_images={"train": num_images},
        transform={},
    )
    begin_cache(folder / "cache", spec)
    writer = TokenShardWriter(folder / "cache", "train", spec)
    (folder / "files").mkdir()
    generator = torch.Generator().manual_seed(SEED)
    for row in range(num_images):
        shape = (NUM_CROPS, spec.num_tokens)
        tokens = torch.randint(config.codebook_size, shape, generator=generator)
        label = torch.full((NUM_CROPS,), row % 2)
        writer.add(tokens, label, torch.full((NUM_CROPS,), row), 1 + torch.arange(NUM_CROPS))
        np.save(folder / "files" / f"{row}.codes.npy", tokens.numpy()[None])
        np.save(folder / "files" / f"{row}.label.npy", np.array([row % 2]))
    merge_manifest(folder / "cache", spec)


def epochs(loader: object) -> Iterator[object]:
    """The loader's batches, epoch after epoch."""
    for _ in cycle([0]):
        yield from loader  # type: ignore[attr-defined]


def build_rivals(folder: Path, size: Size, num_images: int, batch_size: int) -> list[Rival]:
    """Rows of the table."""

    def per_file() -> object:
        dataset = FilePerImage(folder / "files", num_images)
        return DataLoader(dataset, batch_size, shuffle=True, drop_last=True)

    def cached(**settings: str) -> object:
        data = TokenDataModule(str(folder / "cache"), batch_size, **settings)  # type: ignore
        data.setup("fit")
        return data.train_dataloader()

    def reading(make: Callable[[], object]) -> Callable[[], Lap]:
        def build() -> Lap:
            batches = epochs(make())
            return lap_of(lambda: next(batches), torch.device("cpu"))

        return build

    def tokenising() -> Lap:
        torch.manual_seed(SEED)
        network = VQVAE(size.tokenizer).eval()
        images = random_images(size, 1, torch.device("cpu"), False)
        return lap_of(lambda: network.encode(images), torch.device("cpu"))

    return [
        Rival(FILES, reading(per_file), batch_size, is_counted=False),
        Rival(MAPPED, reading(cached), batch_size, FILES, is_counted=False),
        Rival(IN_RAM, reading(lambda: cached(resident="ram")), batch_size, FILES, is_counted=False),
        Rival(ON_THE_FLY, tokenising, 1, is_counted=False),
    ]


def main(words: list[str]) -> int:
    """Run the benchmark.

    Args:
        words: The command line.
    """
    parser = build_parser("Time of reading token pyramids.", list(SIZES))
    parser.add_argument("--num_images", type=int, default=0, help="pyramids on disk")
    args = resolve(parser.parse_args(words), cpu_size="imagenet256", cuda_size="imagenet256")
    size = SIZES[args.size]
    is_tiny = args.size == "tiny"
    batch_size = args.batch or (8 if is_tiny else BATCH)
    num_images = args.num_images or (32 if is_tiny else 8192)
    with tempfile.TemporaryDirectory() as made:
        write_both(Path(made), size, num_images)
        settings = {
            "size": args.size,
            "pyramids": num_images,
            "crops": NUM_CROPS,
            "batch": batch_size,
            "rounds": args.rounds,
        }
        notes = (
            "One process without workers, a warm page cache, random order.",
            "The last row is the network alone: decoding and cropping come on top.",
        )
        rivals = build_rivals(Path(made), size, num_images, batch_size)
        return compete(Benchmark(Path(__file__), rivals, settings, notes), args, words)


if __name__ == "__main__":
    sys.exit(exit_code(main))
