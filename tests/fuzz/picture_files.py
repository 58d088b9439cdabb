"""Pictures in files of others: litdata's chunks, parquet, and single ones of every format."""

import json
import logging
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz.data_files import NUM_IMAGES, judge_seen, look, picture
from tests.fuzz.kinds import Kind
from tests.fuzz.mutations import mutate_bytes, mutate_json
from varlit.data.decoding import read_rgb, read_size, read_with_traits
from varlit.data.formats.chunks import open_chunks
from varlit.data.formats.parquet import open_parquet


def make_chunks(folder: Path) -> None:
    """By hand, as litdata does: number of items, offsets, items of sizes and values."""
    items = []
    for number in range(NUM_IMAGES):
        image, label = picture(number), np.int64(number % 2).tobytes()
        sizes = np.array([len(image), len(label)], dtype=np.uint32).tobytes()
        items.append(sizes + image + label)
    start = 4 + 4 * (len(items) + 1)
    offsets = np.cumsum([start, *map(len, items)]).astype(np.uint32)
    content = np.uint32(len(items)).tobytes() + offsets.tobytes() + b"".join(items)
    (folder / "chunk-0-0.bin").write_bytes(content)
    leaf = {"type": None, "context": None, "children_spec": []}
    spec = [
        1,
        {"type": "builtins.dict", "context": '["image", "label"]'}
        | {"children_spec": [leaf, leaf]},
    ]
    chunk = {"chunk_bytes": len(content), "chunk_size": NUM_IMAGES, "filename": "chunk-0-0.bin"}
    config = {"data_format": ["bytes", "int"], "data_spec": json.dumps(spec)} | {
        "compression": None,
        "chunk_size": NUM_IMAGES,
        "item_loader": "PyTreeLoader",
    }
    (folder / "index.json").write_text(json.dumps({"chunks": [chunk], "config": config}))


def read_chunks(folder: Path) -> Any:
    return [look(images) for images in open_chunks(str(folder)).values()]


def make_parquet(folder: Path) -> None:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    images = [{"bytes": picture(n), "path": f"{n}.png"} for n in range(NUM_IMAGES)]
    labels = [n % 2 for n in range(NUM_IMAGES)]
    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    table = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    table.to_parquet(folder / "train-00000-of-00001.parquet")


def read_parquet(folder: Path) -> Any:
    import datasets

    datasets.config.HF_DATASETS_CACHE = folder / "arrow"
    return [look(images) for images in open_parquet(str(folder)).values()]


PICTURES = {
    "a.jpg": ("JPEG", "RGB"),
    "b.jpg": ("JPEG", "CMYK"),
    "c.png": ("PNG", "RGBA"),
    "d.png": ("PNG", "P"),
    "e.webp": ("WEBP", "RGB"),
    "f.gif": ("GIF", "P"),
    "g.bmp": ("BMP", "RGB"),
    "h.tif": ("TIFF", "RGB"),
    "i.ppm": ("PPM", "RGB"),
    "j.png": ("PNG", "I;16"),
}


def make_pictures(folder: Path) -> None:
    for number, (name, (kind, mode)) in enumerate(PICTURES.items()):
        (folder / name).write_bytes(picture(number, kind, "L" if mode == "I;16" else mode))
    gray = np.arange(0, 6000, 100, dtype=np.uint16).reshape(6, 10)
    Image.fromarray(gray).save(folder / "j.png")


def read_pictures(folder: Path) -> Any:
    """The one that was changed is read alone; the others are as they were."""
    newest = max(folder.glob("*.*"), key=lambda path: path.stat().st_mtime_ns)
    read_size(newest)
    images = [read_with_traits(newest).image, read_rgb(newest.read_bytes())]
    return [(image.mode, image.size, len(image.tobytes())) for image in images]


def judge_picture(got: Any, original: Any) -> str:
    """Formats without checksums: any picture that is one."""
    (mode, (w, h), num_bytes), other = got
    right = got[0] == other and mode == "RGB" and num_bytes == 3 * w * h > 0
    return "" if right else f"{got}"


def doubled(content: bytes, draw: Random) -> bytes:
    """Accidents of two kinds at once."""
    return mutate_bytes(mutate_bytes(content, draw), draw)


KINDS = (
    Kind(
        "litdata chunks",
        make_chunks,
        read_chunks,
        {"index.json": (mutate_json, mutate_bytes), "*.bin": (mutate_bytes,)},
        judge_seen,
        right="pictures, or marked",
    ),
    Kind(
        "parquet",
        make_parquet,
        read_parquet,
        {"*.parquet": (mutate_bytes, doubled)},
        judge_seen,
        share=0.25,
        right="pictures, or marked",
    ),
    Kind(
        "picture",
        make_pictures,
        read_pictures,
        {"*": (mutate_bytes, doubled)},
        judge_picture,
        share=3,
        right="a picture",
    ),
)
