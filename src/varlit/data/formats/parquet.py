"""Images in parquet files, as Hugging Face lays data sets out, and data sets of its hub.

Both go through the `datasets` library, whose Arrow files are memory-mapped: every row is in reach.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from varlit.data.formats.encoded import EncodedImages
from varlit.data.formats.hub_columns import (
    Columns,
    choose_columns,
    read_class_names,
    read_labels,
    read_names,
)
from varlit.errors import UserError

VAL_SPLITS = ("validation", "val", "valid", "dev", "test")
"""Names that public data sets give to what one validates on, the best first."""

FOLDERS = ("", "data", "train", *VAL_SPLITS)
INSTALL = "pip install 'varlit[formats]'"

_SPLIT_NAME = re.compile(rf"(train|{'|'.join(VAL_SPLITS)})(?![A-Za-z])")
_HUB_NAME = re.compile(r"(?P<path>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[\w.-]+))?")


@dataclass(frozen=True, eq=False)
class ParquetImages:
    """The rows of a table with an image column.

    Attributes:
        place: What the user wrote, and the split.
        class_names: Names in the order of the labels.
        names: (N,) fixed-width bytes: the file names kept in the table, else the row numbers.
        labels: (N,) int64.
        rows: (N,) int64, places in the table.
        table: A `datasets.Dataset` of the image column. It is memory-mapped: a worker process gets
            the names of its files, not their bytes.
    """

    place: str
    class_names: tuple[str, ...]
    names: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    table: Any

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> bytes | Path:
        """Return the bytes of a row's image, or its file where the table holds paths."""
        found = self.table[int(self.rows[row])].column(0)[0].as_py()
        if not isinstance(found, dict):
            found = {"bytes": found}
        if found.get("bytes") is not None:
            return found["bytes"]
        if not found.get("path"):
            raise OSError("the row holds no image")
        return Path(found["path"])

    def where(self, row: int) -> str:
        """Return the table, the row and its name."""
        return f"{self.place}, row {self.rows[row]} ({self.names[row].decode(errors='replace')})"

    def take(self, rows: np.ndarray) -> ParquetImages:
        """Return the split with only some of its rows."""
        return replace(self, names=self.names[rows], labels=self.labels[rows], rows=self.rows[rows])


def is_parquet(root: str) -> bool:
    """Whether `root` is a parquet file, a pattern of such, or a folder that holds some."""
    if root.endswith(".parquet"):
        return bool(_files(root))
    return any(next(Path(root, folder).glob("*.parquet"), None) for folder in FOLDERS)


def open_parquet(root: str, val_root: str = "") -> dict[str, EncodedImages]:
    """Open parquet files: a file, a pattern, or a folder as Hugging Face names its files.

    A folder holds train-00000-of-00005.parquet and so on, itself, in data/, or in train/ and
    validation/. To validate on are, whichever comes first, the files named validation, val, valid,
    dev, or test; a split without labels (-1, as in ImageNet's test set) is left out. Files whose
    names tell no split are all to train on.

    Random access to images inside parquet is slow, for a whole row group has to be decompressed to
    get at one. At the first start `datasets` therefore writes the same rows as Arrow files, which
    take about as much disk again as the images (ImageNet: 150 GB), in $HF_DATASETS_CACHE (by
    default ~/.cache/huggingface/datasets); later starts, and other processes, map those.
    `Dataset.from_parquet` does no less, but for keep_in_memory, which holds it all in RAM.

    Args:
        root: The file, pattern or folder.
        val_root: The same for validation, where it lies elsewhere.

    Returns:
        "train" and, if there is one, "val".

    Raises:
        UserError: If `datasets` is missing, files are damaged, or the columns are not as expected.
    """
    by_split = _split_files(root)
    if "train" not in by_split:
        raise UserError(
            f"'{root}' has parquet files of {', '.join(by_split)} but none to train on: expected "
            "names such as train-00000-of-00005.parquet."
        )
    val_files = _split_files(val_root) if val_root else by_split
    val_split = next((name for name in VAL_SPLITS if name in val_files), "train")
    if val_root and not val_files[val_split]:
        raise UserError(f"no parquet file in '{val_root}': expected a file, folder or pattern.")
    files = {"train": by_split["train"]}
    if val_root or val_split != "train":
        files["val"] = val_files[val_split]

    def load(library: Any) -> Any:
        # One by one: together, the class names of the first would be laid on all of them.
        return {
            split: library.load_dataset("parquet", data_files={split: listed}, split=split)
            for split, listed in files.items()
        }

    remedy = "copy a damaged file again; where the copy of `datasets` has no room, set HF_HOME"
    opened = _open_tables(_load(load, f"'{root}'", remedy), root)
    if val_root and "val" not in opened:
        raise UserError(f"'{val_root}' has no labels to validate with: leave val_root empty.")
    return opened


def open_hub(name: str) -> dict[str, EncodedImages]:
    """Open a data set of the Hugging Face hub.

    It is downloaded once into $HF_HOME (by default ~/.cache/huggingface) and, as for
    `open_parquet`, written a second time as Arrow files: twice the size of the images on disk.
    No code of the data set is run.

    Args:
        name: "owner/name" or "owner/name:config".

    Raises:
        UserError: If it is not there, cannot be reached, or has no images with labels.
    """
    matched = _HUB_NAME.fullmatch(name)
    if matched is None:
        raise UserError(
            f"data.root is 'hf:{name}': expected hf:owner/name or hf:owner/name:config, as in "
            "hf:ILSVRC/imagenet-1k."
        )

    def load(library: Any) -> Any:
        print(f"asking the Hugging Face hub for {name}", file=sys.stderr)
        with _few_words():
            return library.load_dataset(matched["path"], matched["config"])

    remedy = (
        "check the name and the network; for a gated set, accept its terms on the hub and run "
        "`hf auth login`; without network, download its parquet files elsewhere and set data.root "
        "to their folder"
    )
    return _open_tables(_load(load, f"hf:{name}", remedy), f"hf:{name}")


@contextmanager
def _few_words() -> Iterator[None]:
    """Keep to itself what the hub's library says of each of its tries, but for the last."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _files(pattern: str) -> list[str]:
    return sorted(glob(pattern)) if re.search(r"[*?\[]", pattern) else [pattern]


def _split_files(root: str) -> dict[str, list[str]]:
    """Sort the parquet files of a root by split, "train" where their names do not tell."""
    if root.endswith(".parquet"):
        files = _files(root)
    else:
        files = [str(path) for folder in FOLDERS for path in Path(root, folder).glob("*.parquet")]
    by_split: dict[str, list[str]] = {}
    for file in sorted(files):
        path = Path(file)
        named = _SPLIT_NAME.match(path.name)
        inside = path.parent.name if path.parent.name in FOLDERS[2:] else ""
        by_split.setdefault(named[1] if named else inside, []).append(file)
    unnamed = by_split.pop("", [])
    if unnamed and by_split:
        raise UserError(
            f"'{unnamed[0]}' lies beside files of {', '.join(by_split)} and does not say to which "
            "split it belongs: rename it to train-*.parquet or validation-*.parquet, or move it."
        )
    return by_split or {"train": unnamed}


def _load(load: Callable[[Any], Any], place: str, remedy: str) -> Any:
    """Let `datasets` read something, and say in one sentence why it could not."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{place} needs the package `datasets`: {INSTALL}.") from error
    try:
        return load(datasets)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        reason = (str(cause).splitlines() or [type(cause).__name__])[0].rstrip(".")
        raise UserError(f"cannot read {place} ({reason}): {remedy}.") from error


def _open_tables(tables: Any, place: str) -> dict[str, EncodedImages]:
    if "train" not in tables:
        raise UserError(f"{place} has the splits {', '.join(tables)}: expected one named train.")
    columns = choose_columns(tables["train"].features, place)
    class_names = read_class_names(tables["train"], columns, place)
    train = _open_table(tables["train"], columns, class_names, f"{place} train")
    for split in VAL_SPLITS:
        if split in tables and not _lacks_labels(tables[split], columns):
            val = _open_table(tables[split], columns, class_names, f"{place} {split}")
            return {"train": train, "val": val}
    return {"train": train}


def _lacks_labels(table: Any, columns: Columns) -> bool:
    """Whether a split is one to hand in results for, whose labels are kept secret."""
    if columns.label not in table.features:
        return True
    column = table.data.column(columns.label)
    return column.null_count == len(column) or set(column.unique().to_pylist()) <= {-1}


def _open_table(
    table: Any, columns: Columns, class_names: Sequence[str], place: str
) -> ParquetImages:
    return ParquetImages(
        place=place,
        class_names=tuple(class_names),
        names=read_names(table, columns),
        labels=read_labels(table, columns, class_names, place),
        rows=np.arange(len(table)),
        table=table.select_columns([columns.image]).with_format("arrow"),
    )
