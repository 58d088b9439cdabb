"""How a folder of a million images starts, the first time and the second, and what it holds.

python benchmarks/checks/million_files.py [--files 1000000] [--folder /tmp]

Hard links to one JPEG for each class, so the disk holds few bytes but all names. Each start is a
process of its own, from the imports to the batches that two workers read.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

NUM_CLASSES = 1000
NUM_WORKERS = 2
NUM_BATCHES = 8
BATCH_SIZE = 16
IMAGE_SIZE = 64
SETTLE_S = 2.5  # a folder that has just changed is not remembered


@dataclass(frozen=True)
class Start:
    """What one start took."""

    imports_s: float
    index_s: float
    hold_out_s: float
    headers_s: float
    first_batch_s: float
    total_s: float
    num_images: int
    imports_bytes: int
    held_bytes: int
    peak_bytes: int
    worker_bytes: tuple[int, ...]
    own_worker_bytes: tuple[int, ...]


def main(words: list[str]) -> int:
    """Build the tree, start twice, print.

    Args:
        words: The command line.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the tree is made; default: as tempfile")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.start is not None:
        print(json.dumps(asdict(measure(args.start))))
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="million-files-") as folder:
        tree, began_s = Path(folder) / "images", time.perf_counter()
        make_tree(tree, args.files)
        print(f"{args.files:,} hard links in {time.perf_counter() - began_s:.1f} s")
        time.sleep(SETTLE_S)
        environment = {**os.environ, "VARLIT_CACHE": str(Path(folder) / "cache")}
        for name in ("first", "second"):
            command = [sys.executable, __file__, "--start", str(tree)]
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            print(describe(name, json.loads(done.stdout.splitlines()[-1])), flush=True)
        began_s = time.perf_counter()
    print(f"removed in {time.perf_counter() - began_s:.1f} s")
    return 0


def make_tree(root: Path, num_files: int) -> None:
    """Make a tree of hard links that is named as ImageNet's is.

    Args:
        root: Where.
        num_files: Images, shared out over 1,000 classes.
    """
    random = np.random.default_rng(0)
    for label in range(min(NUM_CLASSES, num_files)):
        synset = f"n{label:08d}"
        folder = root / synset
        folder.mkdir(parents=True)
        # A file of its own for each class: ext4 bears 65,000 links to one.
        pixels = random.integers(0, 256, (12, 10, 3), dtype=np.uint8)
        first = folder / f"{synset}_0.JPEG"
        Image.fromarray(pixels).resize((100, 120), Image.Resampling.BICUBIC).save(first, "JPEG")
        for number in range(label + NUM_CLASSES, num_files, NUM_CLASSES):
            os.link(first, folder / f"{synset}_{number}.JPEG")


def measure(tree: Path) -> Start:
    """Start a data module in this process and read some batches.

    Args:
        tree: Folder of class folders.
    """
    began_s = time.perf_counter()
    from harness.memory import peak_resident_bytes, resident_bytes

    from varlit.data import images
    from varlit.data.formats import folders, splits

    imported_s, imports_bytes = time.perf_counter(), peak_resident_bytes()
    spent_s: dict[str, float] = {}
    watch(folders, "list_class_folders", spent_s)
    watch(splits, "hold_out_rows", spent_s)
    watch(images, "_refuse_small_images", spent_s)
    data = images.ImageDataModule(
        str(tree), image_size=IMAGE_SIZE, batch_size=BATCH_SIZE, num_workers=NUM_WORKERS
    )
    made_s = time.perf_counter()
    batches = iter(data.train_dataloader())
    next(batches)
    ended_s = time.perf_counter()
    for _ in range(NUM_BATCHES - 1):
        next(batches)
    workers = [f"/proc/{child.pid}" for child in multiprocessing.active_children()]
    return Start(
        imports_s=imported_s - began_s,
        index_s=spent_s["list_class_folders"],
        hold_out_s=spent_s["hold_out_rows"],
        headers_s=spent_s["_refuse_small_images"],
        first_batch_s=ended_s - made_s,
        total_s=ended_s - began_s,
        num_images=sum(len(split) for split in data.splits.values()),
        imports_bytes=imports_bytes,
        held_bytes=resident_bytes(),
        peak_bytes=peak_resident_bytes(),
        worker_bytes=tuple(status_bytes(f"{proc}/status", "VmHWM") for proc in workers),
        own_worker_bytes=tuple(status_bytes(f"{proc}/smaps_rollup", "Private") for proc in workers),
    )


def watch(module: object, name: str, spent_s: dict[str, float]) -> None:
    """Add up the seconds that a module's function takes.

    Args:
        module: Where it is looked up.
        name: The function.
        spent_s: Where the seconds go, under its name.
    """
    function = getattr(module, name)

    def timed(*args: object, **kwargs: object) -> object:
        began_s = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent_s[name] = spent_s.get(name, 0.0) + time.perf_counter() - began_s

    setattr(module, name, timed)


def status_bytes(path: str, field: str) -> int:
    """Add up the fields of /proc that begin so, in bytes.

    Args:
        path: The file.
        field: Beginning of the names.
    """
    lines = Path(path).read_text(encoding="ascii").splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(field))


def describe(name: str, start: dict[str, object]) -> str:
    """Say what a start took.

    Args:
        name: Which start.
        start: A `Start` as JSON.
    """
    found = Start(**start)  # type: ignore[arg-type]
    main = [mib(size) for size in (found.held_bytes, found.peak_bytes, found.imports_bytes)]
    workers, own = (
        ", ".join(map(mib, sizes)) for sizes in (found.worker_bytes, found.own_worker_bytes)
    )
    return (
        f"{name} start of {found.num_images:,} images: {found.total_s:.1f} s = "
        f"imports {found.imports_s:.1f} + names {found.index_s:.1f} + held-out part "
        f"{found.hold_out_s:.1f} + 1,000 headers {found.headers_s:.1f} + first batch "
        f"{found.first_batch_s:.1f} + rest\n"
        f"  resident MiB: main {main[0]}, at most {main[1]} (after the imports {main[2]}); "
        f"workers at most {workers} (not shared with others {own})"
    )


def mib(size: int) -> str:
    """Bytes in MiB.

    Args:
        size: Bytes.
    """
    return f"{size / 2**20:,.0f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
