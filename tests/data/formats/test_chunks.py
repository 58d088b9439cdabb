import io
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from varlit.data.decoding import read_rgb
from varlit.data.formats import chunk_index
from varlit.data.formats.chunks import ChunkImages, is_chunks, open_chunks
from varlit.data.formats.encoded import EncodedImages
from varlit.data.formats.splits import open_splits
from varlit.errors import UserError

litdata = pytest.importorskip("litdata")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VARLIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(gray: int) -> Image.Image:
    return Image.new("RGB", (8, 6), (gray, gray, gray))


def jpeg(gray: int) -> bytes:
    content = io.BytesIO()
    picture(gray).save(content, "JPEG")
    return content.getvalue()


def write(folder: Path, items: Iterable[object], **settings: Any) -> Path:
    """Write chunks of four items with litdata's own writer, as `litdata.optimize` does."""
    from litdata.streaming import Cache

    folder.mkdir(parents=True)
    cache = Cache(str(folder), chunk_size=4, **settings)
    for number, item in enumerate(items):
        cache[number] = item
    cache.done()
    cache.merge()
    return folder


def standard(count: int, start: int = 0) -> list[object]:
    """Items of gray `start + i` and label i % 3."""
    return [{"image": jpeg(start + n), "label": n % 3} for n in range(count)]


def gray(images: EncodedImages, row: int) -> int:
    return read_rgb(images.read(row)).getpixel((4, 3))[0]


def test_rows_are_what_litdata_reads_itself(tmp_path: Path) -> None:
    write(tmp_path / "chunks", standard(10))
    assert is_chunks(str(tmp_path / "chunks"))
    images = open_chunks(str(tmp_path / "chunks"))["train"]
    expected = litdata.StreamingDataset(str(tmp_path / "chunks"))
    assert len(images) == len(expected) == 10
    for row in (9, 0, 4, 3, 7):
        assert images.read(row) == bytes(expected[row]["image"])
        assert images.labels[row] == expected[row]["label"]
    assert images.class_names == ("0", "1", "2")
    assert len(np.unique(images.names)) == 10
    assert images.where(5).endswith("chunk-0-1.bin:000001")


def test_train_and_val_folders_open_with_class_names(tmp_path: Path) -> None:
    write(tmp_path / "train", standard(5))
    write(tmp_path / "val", standard(2, start=100))
    (tmp_path / "classes.txt").write_text("cat\ndog\nhorse\n")
    assert is_chunks(str(tmp_path))
    found = open_splits(str(tmp_path))
    assert found["train"].class_names == found["val"].class_names == ("cat", "dog", "horse")
    assert [gray(found["val"], row) for row in (0, 1)] == [100, 101]
    apart = open_chunks(str(tmp_path / "train"), str(tmp_path / "val"))
    assert [len(images) for images in apart.values()] == [5, 2]
    assert len(open_chunks(str(tmp_path / "train"), str(tmp_path))["val"]) == 2


@pytest.mark.parametrize(
    "item",
    [
        lambda n: (picture(n), n),
        lambda n: {"label": n, "image": np.full((6, 8, 3), n, np.uint8), "name": "x" * n},
        lambda n: {"image": np.full((3, 6, 8), n, np.uint8), "label": n},
        lambda n: (torch.full((3, 6, 8), n, dtype=torch.uint8), n),
        lambda n: {"meta": {"label": n, "id": 7}, "jpg": Image.open(io.BytesIO(jpeg(n)))},
        lambda n: {"image": jpeg(n), "label": n, "more": {1, 2}},
        lambda n: {"image": jpeg(n), "label": n, "name": "x" * n},
        lambda n: (jpeg(n), n),
    ],
    ids=["pil", "numpy", "planes", "tensor", "jpeg", "pickle-beside", "rows", "tuple"],
)
def test_images_open_however_litdata_stored_them(
    tmp_path: Path, item: Callable[[int], object]
) -> None:
    write(tmp_path / "chunks", map(item, range(9)))
    images = open_chunks(str(tmp_path / "chunks"))["train"]
    assert images.labels.tolist() == list(range(9))
    assert [gray(images, row) for row in range(9)] == list(range(9))
    assert read_rgb(images.read(0)).size == (8, 6)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.file}",)


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    write(tmp_path / "labels", [{"image": jpeg(1), "label": np.int64(1)}])
    with pytest.raises(UserError, match=r"label: pickle.*can run code.*int\(label\)"):
        open_chunks(str(tmp_path / "labels"))
    bombs = [{"image": jpeg(1), "label": 0, "more": Bomb(tmp_path / "boom")}]
    write(tmp_path / "beside", bombs)
    open_chunks(str(tmp_path / "beside"))["train"].read(0)
    assert not (tmp_path / "boom").exists()
    assert litdata.StreamingDataset(str(tmp_path / "beside"))[0]
    assert (tmp_path / "boom").exists()


def test_compressed_and_other_chunks_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "chunks", standard(4))
    index = json.loads((tmp_path / "chunks" / "index.json").read_text())
    for changes, message in (
        ({"compression": "zstd"}, "have compression zstd: expected none"),
        ({"ipc_compression": "zstd"}, "have ipc_compression zstd: expected none"),
        ({"item_loader": "TokensLoader"}, "hold no items with an image"),
        ({"data_format": ["bytes", "bytes"]}, "expected one label"),
        ({"data_format": ["str", "int"]}, "expected one image"),
        ({"data_spec": "nonsense"}, "hold no items with an image"),
    ):
        changed = index | {"config": index["config"] | changes}
        (tmp_path / "chunks" / "index.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=message):
            open_chunks(str(tmp_path / "chunks"))


def test_an_index_cannot_lead_to_other_folders(tmp_path: Path) -> None:
    write(tmp_path / "chunks", standard(4))
    text = (tmp_path / "chunks" / "index.json").read_text()
    (tmp_path / "chunks" / "index.json").write_text(text.replace("chunk-0-0", "../chunk-0-0"))
    with pytest.raises(UserError, match="expected a file here"):
        open_chunks(str(tmp_path / "chunks"))


@pytest.mark.parametrize(
    "entry", [5, {"filename": 3, "chunk_size": 1}, {"filename": "a", "chunk_size": "x"}, {}]
)
def test_an_index_of_something_else_is_refused(tmp_path: Path, entry: object) -> None:
    write(tmp_path / "chunks", standard(4))
    index = tmp_path / "chunks" / "index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"chunks": [entry]}))
    with pytest.raises(UserError, match="expected a file here"):
        open_chunks(str(tmp_path / "chunks"))


@pytest.mark.parametrize("names", [b"a\n\nb\n", b"a\xff\n", b""])
def test_a_list_of_classes_that_would_shift_the_labels_is_refused(
    tmp_path: Path, names: bytes
) -> None:
    write(tmp_path / "chunks", standard(4))
    (tmp_path / "chunks" / "classes.txt").write_bytes(names)
    with pytest.raises(UserError, match=r"classes\.txt"):
        open_chunks(str(tmp_path / "chunks"))


def test_a_cache_folder_that_cannot_be_made_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VARLIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot make the folder .*VARLIT_CACHE"):
        open_chunks("litdata:s3://bucket/set")


@pytest.mark.parametrize("kept", ["rows", "trees"])
def test_damaged_chunks_are_named(tmp_path: Path, kept: str) -> None:
    items = standard(8) if kept == "rows" else [(jpeg(n), n) for n in range(8)]
    chunk = write(tmp_path / "chunks", items) / "chunk-0-1.bin"
    whole = chunk.read_bytes()
    other_offset = whole[:4] + b"\xff\xff\xff\x00" + whole[8:]
    for content in (whole[:-1], whole[:10], b"", b"\x05" + whole[1:], other_offset):
        chunk.write_bytes(content)
        with pytest.raises(UserError, match=r"chunk-0-1.bin' is missing or damaged"):
            open_chunks(str(tmp_path / "chunks"))
    chunk.unlink()
    with pytest.raises(UserError, match=r"chunk-0-1.bin' is missing or damaged"):
        open_chunks(str(tmp_path / "chunks"))


def test_a_chunk_that_vanishes_later_costs_its_images_alone(tmp_path: Path) -> None:
    write(tmp_path / "chunks", standard(8))
    images = open_chunks(str(tmp_path / "chunks"))["train"]
    (tmp_path / "chunks" / "chunk-0-1.bin").write_bytes(b"")
    assert gray(images, 3) == 3
    with pytest.raises(OSError, match=r"chunk-0-1.bin is cut off"):
        images.read(4)


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train", standard(2))
    write(tmp_path / "val", standard(3))
    with pytest.raises(UserError, match="label 2, but there are 2 classes"):
        open_chunks(str(tmp_path))
    write(tmp_path / "negative", [{"image": jpeg(0), "label": -1}])
    with pytest.raises(UserError, match="negative labels"):
        open_chunks(str(tmp_path / "negative"))


def test_labels_are_read_once_and_again_when_a_chunk_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "chunks", standard(8))
    before = open_chunks(str(tmp_path / "chunks"))["train"]
    with monkeypatch.context() as changed:
        changed.setattr(chunk_index, "_locate_all", None)
        again = open_chunks(str(tmp_path / "chunks"))["train"]
    assert again.labels.tolist() == before.labels.tolist()
    assert again.read(7) == before.read(7)
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "chunks", standard(8, start=50))
    for file in (tmp_path / "other" / "chunks").iterdir():
        file.rename(tmp_path / "chunks" / file.name)
    assert gray(open_chunks(str(tmp_path / "chunks"))["train"], 0) == 50
    for remembered in Path(os.environ["VARLIT_CACHE"], "chunks").iterdir():
        remembered.write_bytes(b"damaged")
    assert gray(open_chunks(str(tmp_path / "chunks"))["train"], 7) == 57
    monkeypatch.setenv("VARLIT_CACHE", "")
    assert gray(open_chunks(str(tmp_path / "chunks"))["train"], 7) == 57


def test_rows_are_taken_and_sent_to_workers(tmp_path: Path) -> None:
    write(tmp_path / "chunks", standard(12))
    images = open_chunks(str(tmp_path / "chunks"))["train"]
    part = images.take(np.array([11, 2]))
    assert isinstance(part, ChunkImages)
    assert ([gray(part, 0), gray(part, 1)], part.labels.tolist()) == ([11, 2], [2, 2])
    assert pickle.loads(pickle.dumps(part)).read(0) == images.read(11)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(images.read, range(12)) == [images.read(row) for row in range(12)]


def test_a_remote_folder_is_fetched_once(tmp_path: Path) -> None:
    write(tmp_path / "far" / "train", standard(6))
    write(tmp_path / "far" / "val", standard(3))
    root = f"litdata:local:{tmp_path / 'far'}"
    assert is_chunks(root)
    found = open_splits(root)
    assert [len(images) for images in found.values()] == [6, 3]
    (tmp_path / "far").rename(tmp_path / "gone")
    assert gray(open_chunks(root)["train"], 5) == 5


def test_a_broken_off_fetch_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "far", standard(8))
    (tmp_path / "far" / "chunk-0-1.bin").rename(tmp_path / "aside")
    root = f"litdata:local:{tmp_path / 'far'}"
    with pytest.raises(UserError, match=r"cannot fetch a chunk.*finished chunks are kept"):
        open_chunks(root)
    (tmp_path / "aside").rename(tmp_path / "far" / "chunk-0-1.bin")
    assert gray(open_chunks(root)["train"], 7) == 7


def test_a_remote_folder_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"no index.json at local:.*check the address"):
        open_chunks(f"litdata:local:{tmp_path / 'nowhere'}")
    monkeypatch.setenv("VARLIT_CACHE", "")
    with pytest.raises(UserError, match=r"VARLIT_CACHE is empty: set it"):
        open_chunks("litdata:s3://bucket/folder")


def test_other_folders_are_not_chunks(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"shards": []}')
    assert not is_chunks(str(tmp_path))
    (tmp_path / "index.json").write_text("{")
    assert not is_chunks(str(tmp_path))


def test_local_chunks_are_read_without_litdata(tmp_path: Path) -> None:
    write(tmp_path / "chunks", standard(4))
    code = (
        "import sys, threading; from varlit.data.formats.chunks import open_chunks;"
        f"open_chunks({str(tmp_path / 'chunks')!r})['train'].read(2);"
        "sys.exit('litdata' in sys.modules or threading.active_count() > 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
