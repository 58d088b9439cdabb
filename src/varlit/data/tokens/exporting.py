"""Token pyramids for other programs: LlamaGen's files and safetensors shards.

LlamaGen (autoregressive/train/extract_codes_c2i.py) keeps `<name>_codes/<i>.npy`, int64
(1, crops, L), beside `<name>_labels/<i>.npy`, int64 (1,), i counting from 0 without a gap. The
shards are `<split>-00000.safetensors` with tokens uint16 (n, crops, L) and labels int32 (n,),
10,000 images each, and tell in their metadata what wrote them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from varlit.data.tokens.manifest import Manifest
from varlit.data.tokens.reader import open_tokens, require_split
from varlit.data.tokens.writer import npy_bytes
from varlit.data.whole_files import write_bytes
from varlit.errors import UserError

Format = Literal["llamagen", "safetensors"]
CODES, LABELS = "_codes", "_labels"
ROWS_OF_A_FILE = 10_000
Tell = Callable[[int], None]
"""Gets the number of images of each part that is done."""


def mute(count: int) -> None:
    """Tell nobody."""


def export_llamagen(
    manifest: Manifest,
    out: Path,
    split: str = "train",
    name: str = "imagenet256",
    tell: Tell = mute,
) -> int:
    """Write a split as LlamaGen's training reads it; returns the number of images.

    Raises:
        UserError: If the cache has no such split or is damaged, or `out` is not empty.
    """
    require_split(manifest, split)
    dataset = open_tokens(manifest.folder, split)
    begin_folder(out)
    for kind in (CODES, LABELS):
        (out / f"{name}{kind}").mkdir()
    for start in range(0, len(dataset), ROWS_OF_A_FILE):
        for row, tokens in enumerate(dataset.rows(start, start + ROWS_OF_A_FILE), start):
            codes = npy_bytes(tokens[None].astype(np.int64))
            label = npy_bytes(dataset.labels[row : row + 1].astype(np.int64))
            write_bytes(out / f"{name}{CODES}" / f"{row}.npy", codes)
            write_bytes(out / f"{name}{LABELS}" / f"{row}.npy", label)
            tell(1)
    return len(dataset)


def export_safetensors(manifest: Manifest, out: Path, split: str = "", tell: Tell = mute) -> int:
    """Write a split, or all of them, as safetensors shards; returns the number of images.

    Raises:
        UserError: If the cache has no such split or is damaged, or `out` is not empty.
    """
    from safetensors.numpy import save

    if split:
        require_split(manifest, split)
    datasets = {
        name: open_tokens(manifest.folder, name)
        for name in manifest.splits
        if name == split or not split
    }
    begin_folder(out)
    spec = manifest.spec
    metadata = {
        "format": "varlit tokens",
        "tokenizer_hash": spec.tokenizer_hash,
        "scales": json.dumps(spec.scales),
        "codebook_size": str(spec.codebook_size),
        "class_names": json.dumps(spec.class_names),
    }
    for name, dataset in datasets.items():
        for number, start in enumerate(range(0, len(dataset), ROWS_OF_A_FILE)):
            rows = slice(start, start + ROWS_OF_A_FILE)
            labels = dataset.labels[rows].copy()
            arrays = {"tokens": dataset.rows(rows.start, rows.stop), "labels": labels}
            write_bytes(out / f"{name}-{number:05d}.safetensors", save(arrays, metadata))
            tell(len(labels))
    return sum(map(len, datasets.values()))


def begin_folder(folder: Path) -> None:
    """Make a folder for new files, and mix them with no others."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"'{folder}' is not empty: give another folder, or remove it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder '{folder}': {error.strerror}.") from error
