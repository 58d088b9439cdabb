"""Token pyramids of other programs: read, checked, and written as a cache.

The formats are those of `varlit.data.tokens.exporting`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from varlit.data.module import SPLITS
from varlit.data.tokens.exporting import CODES, LABELS, Format, Tell, begin_folder, mute
from varlit.data.tokens.manifest import TOKENIZER_FOLDER, CacheSpec, Manifest, begin_cache
from varlit.data.tokens.writer import TokenShardWriter, check_labels, merge_manifest
from varlit.errors import UserError
from varlit.models.files import save_tokenizer, tokenizer_hash
from varlit.models.vqvae import VQVAE

SHARD_SIZE = 16_384
MOST_CLASSES = 2**20


@dataclass(frozen=True, eq=False)
class Pyramids:
    """A split that another program wrote.

    Attributes:
        place: Where it lies.
        num_crops: Crops of each image.
        labels: (N,) integers, not checked yet.
        read: Returns the tokens of some rows, integers (n, crops, L), not checked yet.
    """

    place: Path
    num_crops: int
    labels: np.ndarray
    read: Callable[[range], np.ndarray]


def open_llamagen(folder: Path) -> Pyramids:
    """Open a folder that LlamaGen wrote.

    Raises:
        UserError: If there are no codes, or labels that do not belong to them.
    """
    found = sorted(folder.glob(f"*{CODES}"))
    if len(found) != 1:
        raise UserError(
            f"'{folder}' has {len(found)} folders called *{CODES}, expected one beside *{LABELS}."
        )
    codes = found[0]
    labels = codes.with_name(codes.name.removesuffix(CODES) + LABELS)
    count = sum(1 for _ in codes.glob("*.npy"))
    if count == 0:
        raise UserError(f"'{codes}' holds no codes: expected 0.npy, 1.npy, ...")
    values = np.stack([_read_npy(labels / f"{row}.npy").reshape(-1) for row in range(count)])
    if values.shape != (count, 1):
        raise UserError(f"'{labels}' has labels of shape {values.shape[1:]}: expected (1,).")
    first = _read_npy(codes / "0.npy").shape

    def read(rows: range) -> np.ndarray:
        arrays = [_read_npy(codes / f"{row}.npy") for row in rows]
        for row, array in zip(rows, arrays, strict=True):
            if array.shape != first:
                raise UserError(
                    f"'{codes / f'{row}.npy'}' has shape {array.shape}, the first file {first}: "
                    "expected the same."
                )
        return np.concatenate(arrays)

    if len(first) != 3 or first[0] != 1:
        raise UserError(f"'{codes / '0.npy'}' has shape {first}: expected (1, crops, tokens).")
    return Pyramids(codes, first[1], values[:, 0], read)


def open_safetensors(folder: Path) -> tuple[dict[str, Pyramids], dict[str, str]]:
    """Open a folder of shards: its splits, and what the shards tell of themselves.

    Raises:
        UserError: If there is none to train on, or one is damaged.
    """
    from safetensors import SafetensorError, safe_open

    paths: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*-*.safetensors")):
        paths.setdefault(path.name.rpartition("-")[0], []).append(path)
    if not paths:
        raise UserError(f"'{folder}' holds no shards: expected such as train-00000.safetensors.")
    if "train" not in paths or set(paths) - set(SPLITS):
        raise UserError(
            f"'{folder}' holds shards of {', '.join(paths)}: expected train, and val if any."
        )
    splits, metadata = {}, dict[str, str]()
    for split, files in paths.items():
        labels, shapes = [], []
        for path in files:
            try:
                with safe_open(path, framework="numpy") as file:
                    labels.append(np.asarray(file.get_tensor("labels")))
                    shapes.append(tuple(file.get_slice("tokens").get_shape()))
                    metadata = file.metadata() or {}
            except SafetensorError as error:
                raise UserError(
                    f"'{path}' is no shard of tokens ({error}): expected tokens (n, crops, L) and "
                    "labels (n,)."
                ) from error
            if len(shapes[-1]) != 3 or shapes[-1][1:] != shapes[0][1:]:
                raise UserError(
                    f"'{path}' has tokens of shape {shapes[-1]}: expected (n, crops, L), with "
                    "crops and L as in the first shard."
                )
            if labels[-1].shape != shapes[-1][:1]:
                raise UserError(f"'{path}' has labels of shape {labels[-1].shape}: expected (n,).")
        ends = np.cumsum([shape[0] for shape in shapes])
        reader = _ShardReader(tuple(files), ends)
        splits[split] = Pyramids(folder, shapes[0][1], np.concatenate(labels), reader.read)
    return splits, metadata


def import_tokens(
    found: Mapping[str, Pyramids],
    network: VQVAE,
    folder: Path,
    class_names: tuple[str, ...],
    origin: Format,
    tell: Tell = mute,
) -> Manifest:
    """Write a cache from pyramids whose ranges are not to be trusted.

    Args:
        found: The splits.
        network: The tokenizer that decodes them.
        folder: The cache, which must not exist yet or be empty.
        class_names: Names in the order of the labels.
        origin: The format, which the manifest names.
        tell: Gets the number of images of each part that is done.

    Raises:
        UserError: If tokens or labels do not fit the tokenizer and the classes.
    """
    config = network.config
    spec = CacheSpec(
        tokenizer_hash=tokenizer_hash(network),
        scales=config.scales,
        codebook_size=config.codebook_size,
        codebook_dim=config.codebook_dim,
        class_names=class_names,
        num_crops={split: part.num_crops for split, part in found.items()},
        shard_size=SHARD_SIZE,
        num_images={split: len(part.labels) for split, part in found.items()},
        transform={"imported": origin},
    )
    for part in found.values():
        if part.labels.dtype.kind not in "iu":
            raise UserError(f"'{part.place}' has labels of {part.labels.dtype}: expected integers.")
        remedy = "Give a fitting --num_classes, or mend the labels."
        check_labels(part.labels, class_names, f"'{part.place}'", remedy)
    begin_folder(folder)
    try:
        begin_cache(folder, spec)
        for split, part in found.items():
            _write_split(TokenShardWriter(folder, split, spec), part, tell)
        save_tokenizer(network, folder / TOKENIZER_FOLDER)
        return merge_manifest(folder, spec)
    except BaseException:
        shutil.rmtree(folder)  # it was empty: nothing is lost, and the next try is not refused
        raise


def _write_split(writer: TokenShardWriter, part: Pyramids, tell: Tell) -> None:
    for index in writer.pending().batches(0):
        rows = range(int(index.ids[0]), int(index.ids[-1]) + 1)
        tokens = check_tokens(part.read(rows), writer.spec, part.place)
        ids, views = torch.from_numpy(index.ids), torch.from_numpy(index.views)
        labels = torch.from_numpy(part.labels.astype(np.int64))[ids]
        writer.add(torch.from_numpy(tokens), labels, ids, views)
        tell(len(rows))


def recorded_classes(metadata: Mapping[str, str], network: VQVAE, place: Path) -> tuple[str, ...]:
    """Return the class names that shards tell of themselves; empty where they tell nothing.

    Raises:
        UserError: If they tell of another tokenizer.
    """
    recorded, own = metadata.get("tokenizer_hash", ""), tokenizer_hash(network)
    if recorded and recorded != own:
        raise UserError(
            f"the shards in '{place}' were made by tokenizer {recorded[:12]}, this one is "
            f"{own[:12]}: give that tokenizer."
        )
    try:
        names = json.loads(metadata.get("class_names", "[]"))
    except ValueError:
        names = []
    return tuple(map(str, names)) if isinstance(names, list) else ()


def numbered_classes(found: Mapping[str, Pyramids], num_classes: int) -> tuple[str, ...]:
    """Return numbers as names: so many, or for 0 as many as the labels show.

    Raises:
        UserError: If the labels are too high to be classes.
    """
    highest = max((int(part.labels.max(initial=0)) for part in found.values()), default=0)
    if num_classes == 0 and highest >= MOST_CLASSES:
        raise UserError(f"the labels go up to {highest}: give --num_classes, or mend the labels.")
    return tuple(map(str, range(num_classes or highest + 1)))


def check_tokens(tokens: np.ndarray, spec: CacheSpec, place: Path) -> np.ndarray:
    """Return tokens (n, crops, L) of another program as int64 (n * crops, L).

    Raises:
        UserError: If they are not what this tokenizer can decode.
    """
    if tokens.dtype.kind not in "iu":
        raise UserError(f"'{place}' has tokens of type {tokens.dtype}: expected integers.")
    if tokens.shape[-1] != spec.num_tokens:
        raise UserError(
            f"'{place}' has {tokens.shape[-1]} tokens an image, the tokenizer {spec.num_tokens} "
            f"(scales {list(spec.scales)}): give the tokenizer that made them."
        )
    if tokens.min() < 0 or tokens.max() >= spec.codebook_size:
        raise UserError(
            f"'{place}' has tokens {tokens.min()} to {tokens.max()}, the tokenizer has codes 0 to "
            f"{spec.codebook_size - 1}: give the tokenizer that made them."
        )
    return tokens.reshape(-1, spec.num_tokens).astype(np.int64)


@dataclass(frozen=True, eq=False)
class _ShardReader:
    """Rows across shards; a shard is opened for each call, and only its rows are read."""

    paths: tuple[Path, ...]
    ends: np.ndarray

    def read(self, rows: range) -> np.ndarray:
        from safetensors import safe_open

        parts, first = [], 0
        for path, end in zip(self.paths, self.ends.tolist(), strict=True):
            start, stop = max(rows.start, first), min(rows.stop, end)
            if start < stop:
                with safe_open(path, framework="numpy") as file:
                    parts.append(file.get_slice("tokens")[start - first : stop - first])
            first = end
        return np.concatenate(parts)


def _read_npy(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise UserError(
            f"cannot read '{path}' ({error}): expected the files 0.npy, 1.npy, ... without a gap."
        ) from error
