"""What images and tokens come from: caches, shards, indexes, chunks, tables, pictures."""

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.fuzz.kinds import Kind, Refused
from tests.fuzz.mutations import mutate_bytes, mutate_json, mutate_text, mutate_zip
from varlit.data.crops import SquareCrop
from varlit.data.formats import folder_index
from varlit.data.formats.shards_file import Shard, ShardList, read_shard_list, write_shard_list
from varlit.data.formats.tar_index import _keep, index_tar
from varlit.data.formats.tars import open_tars
from varlit.data.image_source import Handling, ImageSource
from varlit.data.order import BatchIndex
from varlit.data.tokens.manifest import CacheSpec, begin_cache
from varlit.data.tokens.reader import open_tokens
from varlit.data.tokens.writer import TokenShardWriter, merge_manifest, missing_shards
from varlit.places import CACHE_VARIABLE

NUM_IMAGES, SIDE_PX = 6, 8
SPEC = CacheSpec(
    tokenizer_hash="a" * 64,
    scales=(1, 2),
    codebook_size=64,
    codebook_dim=8,
    class_names=("cat", "dog"),
    num_crops={"train": 3, "val": 1},
    shard_size=4,
    num_images={"train": 6, "val": 3},
    transform={"resize": 1.125},
)


def make_cache(folder: Path) -> None:
    begin_cache(folder, SPEC)
    for split in SPEC.num_images:
        writer = TokenShardWriter(folder, split, SPEC)
        for index in writer.pending().batches(0):
            ids, views = torch.from_numpy(index.ids), torch.from_numpy(index.views)
            tokens = (ids * 8 + views)[:, None].expand(-1, SPEC.num_tokens)
            writer.add(tokens, ids % 2, ids, views)
    merge_manifest(folder, SPEC)


def read_cache(folder: Path) -> Any:
    found = {}
    for split in ("train", "val"):
        tokens = open_tokens(folder, split)
        ids = np.arange(len(tokens))
        for view in (0, 1):
            batch = tokens[BatchIndex(ids, np.full_like(ids, view))]
            found[f"{split} {view}"] = batch["tokens"]
            found[f"{split} label"] = batch["label"]
        found[split] = torch.from_numpy(tokens.rows(0, len(tokens)).astype(np.int64))
    return found


def go_on(folder: Path) -> list[str]:
    """What an encoding that was cut off would still have to write."""
    begin_cache(folder, SPEC)
    return missing_shards(folder, SPEC)


def judge_missing(got: Any, original: Any) -> str:
    """A record that is none stands for a shard that is encoded again."""
    shards = {SPEC.shard_stem(split, s) for split in SPEC.num_images for s in range(2)}
    return "" if set(got) <= shards else f"{got}"


def picture(number: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    draw = np.random.default_rng(number)
    pixels = draw.integers(0, 255, (SIDE_PX + 2, SIDE_PX + 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind)
    return out.getvalue()


def look(images: Any) -> list[Any]:
    """All images as a training would see them, and what a person is told of each."""
    source = ImageSource(images, SquareCrop(SIDE_PX, 1.0, False, 0), Handling(broken="mark"))
    ids = np.arange(min(len(source), 50))
    batch = source[BatchIndex(ids, np.zeros_like(ids))]
    assert all(isinstance(source.where(row), str) for row in ids.tolist())
    assert images.names.dtype.kind == "S"
    assert images.labels.dtype == np.int64
    assert all(0 <= label < len(images.class_names) for label in images.labels.tolist())
    return [batch["id"], batch["label"], batch["image"]]


def judge_seen(got: Any, original: Any) -> str:
    """Every image is what it was, or is marked as broken; or it was made otherwise on purpose."""
    right = all(len({len(part) for part in seen}) == 1 for seen in got)
    right &= all(bool((seen[2].abs() <= 1).all()) for seen in got)
    return "" if right else f"{got}"[:300]


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(NUM_IMAGES):
            stem = f"{'long/' * 30 if number == 3 else ''}{number:04d}"
            add_member(tar, f"{stem}.png", picture(number))
            label = str(number % 2).encode()
            suffix, told = ("cls", label) if number else ("json", b'{"label": 0}')
            add_member(tar, f"{stem}.{suffix}", told)


def make_tar(folder: Path) -> None:
    write_tar(folder / "train-000.tar")


def read_tar(folder: Path) -> Any:
    return [look(images) for images in open_tars(str(folder)).values()]


def make_tar_index(folder: Path) -> None:
    make_tar(folder)
    path = folder / "train-000.tar"
    _keep(index_tar(path), [path.with_name(f"{path.name}.index.npz")])


def read_tar_index(folder: Path) -> Any:
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = str(folder / "cache")  # any place, so that indexes are read
    try:
        return read_tar(folder)
    finally:
        os.environ.pop(CACHE_VARIABLE)
        if before is not None:
            os.environ[CACHE_VARIABLE] = before


def make_shards(folder: Path) -> None:
    make_tar(folder)
    shard = Shard("train-000.tar", NUM_IMAGES, (folder / "train-000.tar").stat().st_size, "0" * 64)
    write_shard_list(ShardList(("cat", "dog"), {"train": (shard,)}), folder)


def read_shards(folder: Path) -> Any:
    listed = read_shard_list(folder / "shards.json")
    for shards in listed.splits.values():
        for shard in shards:
            assert (folder / shard.file).resolve().is_relative_to(folder.resolve())
    assert all(listed.count(split) >= 0 for split in listed.splits)
    return read_tar(folder)


def make_folder_index(folder: Path) -> None:
    names = [f"cat/{n}.png".encode() for n in range(5)]
    listing = folder_index.Listing(
        np.array(names), np.array([b"cat"]), np.array([[5, 6]], dtype=np.int64)
    )
    other = folder_index.Listing(
        np.array([b"dog/0.png"]), np.array([b"dog", b"dog/b"]), np.array([[1, 2], [3, 4]])
    )
    folder_index._write(folder / "index.npz", {b"cat": listing, b"dog": other})


def read_folder_index(folder: Path) -> Any:
    found = folder_index._read(folder / "index.npz")
    if not found:
        raise Refused("listed anew")
    return {
        key: [part.names.tolist(), part.folders.tolist(), part.stamps.tolist()]
        for key, part in found.items()
    }


def judge_listing(got: Any, original: Any) -> str:
    for key, (names, folders, stamps) in got.items():
        right = isinstance(key, bytes) and len(folders) == len(stamps)
        right &= all(isinstance(name, bytes) for name in [*names, *folders])
        right &= all(isinstance(n, int) for stamp in stamps for n in stamp)
        if not right or not all(len(stamp) == 2 for stamp in stamps):
            return f"{key!r}: {names}, {folders}, {stamps}"[:300]
    return ""


KINDS = (
    Kind(
        "token cache, manifest",
        make_cache,
        read_cache,
        {"manifest.json": (mutate_json, mutate_json, mutate_json, mutate_bytes)},
    ),
    Kind(
        "token cache, unfinished",
        make_cache,
        go_on,
        {"spec.json": (mutate_json, mutate_bytes), "train-*.json": (mutate_json, mutate_bytes)},
        judge_missing,
        right="shards to write",
    ),
    Kind("token cache, shards", make_cache, read_cache, {"*.npy": (mutate_bytes,)}),
    Kind("tar shard", make_tar, read_tar, judge=judge_seen, right="pictures, or marked"),
    Kind(
        "index of a tar",
        make_tar_index,
        read_tar_index,
        {"*.npz": (mutate_bytes, mutate_zip, mutate_zip)},
        judge_seen,
        right="pictures, or marked",
    ),
    Kind(
        "shards.json",
        make_shards,
        read_shards,
        {"shards.json": (mutate_json, mutate_json, mutate_bytes, mutate_text)},
        judge_seen,
        right="pictures, or marked",
    ),
    Kind(
        "index of folders",
        make_folder_index,
        read_folder_index,
        {"*": (mutate_bytes, mutate_zip, mutate_zip)},
        judge_listing,
        right="a listing",
    ),
)
