import io
import logging
import multiprocessing
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from varlit.data.decoding import BrokenImageError, read_rgb
from varlit.data.formats import parquet
from varlit.data.formats.encoded import EncodedImages, digest
from varlit.data.formats.parquet import ParquetImages, is_parquet, open_hub, open_parquet
from varlit.data.formats.splits import open_splits
from varlit.errors import UserError

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TENCH = ("tench, Tinca tinca", "goldfish, Carassius auratus")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("hugging-face")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)


def jpeg(gray: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (gray, gray, gray)).save(content, "JPEG")
    return content.getvalue()


def write(file: Path, labels: Sequence[int], start: int = 0, names: Sequence[str] = TENCH) -> None:
    """Write a file as `datasets` does, image i being of gray `start + i`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    )
    images = [
        {"bytes": jpeg(start + n), "path": f"{file.stem}_{n}.JPEG"} for n in range(len(labels))
    ]
    table = datasets.Dataset.from_dict({"image": images, "label": list(labels)}, features=features)
    table.to_parquet(file)


def write_columns(file: Path, **columns: Any) -> None:
    """Write a file without the words that `datasets` adds."""
    pq.write_table(pa.table(columns), file)


def gray(images: EncodedImages, row: int) -> int:
    return read_rgb(images.read(row)).getpixel((4, 4))[0]


@pytest.mark.parametrize("folder", ["", "data"])
def test_a_hugging_face_folder_opens_with_its_class_names(tmp_path: Path, folder: str) -> None:
    write(tmp_path / folder / "train-00001-of-00002.parquet", [1, 0], start=100)
    write(tmp_path / folder / "train-00000-of-00002.parquet", [0, 1, 1], start=10)
    write(tmp_path / folder / "validation-00000-of-00001.parquet", [1], start=200)
    assert is_parquet(str(tmp_path))
    found = open_splits(str(tmp_path))
    train, val = found["train"], found["val"]
    assert train.class_names == val.class_names == TENCH
    assert train.labels.tolist() == [0, 1, 1, 1, 0]
    assert [gray(train, row) for row in range(5)] == [10, 11, 12, 100, 101]
    assert (gray(val, 0), val.labels.tolist()) == (200, [1])
    assert train.names[0] == b"train-00000-of-00002_0.JPEG"
    assert len(np.unique(train.names)) == 5
    assert "row 3" in train.where(3)


def test_a_file_a_pattern_and_split_folders_open(tmp_path: Path) -> None:
    write(tmp_path / "one" / "photos.parquet", [0, 1])
    write(tmp_path / "one" / "more.parquet", [1])
    write(tmp_path / "two" / "train" / "0000.parquet", [0, 1])
    write(tmp_path / "two" / "test" / "0000.parquet", [1])
    for root, sizes in (
        ("one/photos.parquet", {"train": 2}),
        ("one/*.parquet", {"train": 3}),
        ("one", {"train": 3}),
        ("two", {"train": 2, "val": 1}),
    ):
        place = str(tmp_path / root)
        assert is_parquet(place)
        assert {split: len(images) for split, images in open_parquet(place).items()} == sizes
    found = open_parquet(str(tmp_path / "one"), str(tmp_path / "two"))
    assert (len(found["train"]), len(found["val"])) == (3, 1)


def test_other_folders_are_not_parquet(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    assert not is_parquet(str(tmp_path))
    assert not is_parquet(str(tmp_path / "nothing" / "*.parquet"))


def test_a_test_set_without_labels_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", [0, 1])
    write(tmp_path / "test-0.parquet", [-1, -1])
    assert list(open_parquet(str(tmp_path))) == ["train"]
    with pytest.raises(UserError, match="no labels to validate with"):
        open_parquet(str(tmp_path / "train-0.parquet"), str(tmp_path / "test-0.parquet"))


def test_missing_labels_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "some.parquet", [0, -1])
    with pytest.raises(UserError, match=r"1 of 2 images .* have the label -1"):
        open_parquet(str(tmp_path / "some.parquet"))
    write_columns(tmp_path / "null.parquet", image=[jpeg(1)] * 2, label=[0, None])
    with pytest.raises(UserError, match=r"1 of 2 images .* have no label"):
        open_parquet(str(tmp_path / "null.parquet"))


def test_plain_columns_of_bytes_and_text_open(tmp_path: Path) -> None:
    write_columns(
        tmp_path / "train.parquet", png=[jpeg(7), jpeg(9)], id=[5, 6], label=["dog", "cat"]
    )
    train = open_parquet(str(tmp_path))["train"]
    assert train.class_names == ("cat", "dog")
    assert train.labels.tolist() == [1, 0]
    assert gray(train, 1) == 9
    assert train.names.tolist() == [b"00000000", b"00000001"]


def test_classes_unknown_to_the_training_set_are_refused(tmp_path: Path) -> None:
    write_columns(tmp_path / "train.parquet", image=[jpeg(1)] * 2, label=["a", "b"])
    write_columns(tmp_path / "val.parquet", image=[jpeg(1)], label=["c"])
    with pytest.raises(UserError, match="labels beyond the 2 classes"):
        open_parquet(str(tmp_path))
    write(tmp_path / "other" / "train.parquet", [0, 1])
    write(tmp_path / "other" / "val.parquet", [1], names=TENCH[::-1])
    with pytest.raises(UserError, match="val has other class names"):
        open_parquet(str(tmp_path / "other"))


def test_unclear_columns_are_refused(tmp_path: Path) -> None:
    write_columns(tmp_path / "a.parquet", left=[jpeg(1)], right=[jpeg(1)], label=[0])
    with pytest.raises(UserError, match="left, right, label: which holds the images is not clear"):
        open_parquet(str(tmp_path / "a.parquet"))
    write_columns(tmp_path / "b.parquet", image=[jpeg(1)], width=[8])
    with pytest.raises(UserError, match="which holds the labels is not clear"):
        open_parquet(str(tmp_path / "b.parquet"))


def test_files_of_no_split_beside_others_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", [0])
    write(tmp_path / "training_photos.parquet", [0])
    with pytest.raises(UserError, match="does not say to which split it belongs"):
        open_parquet(str(tmp_path))
    (tmp_path / "train-0.parquet").rename(tmp_path / "val-0.parquet")
    (tmp_path / "training_photos.parquet").unlink()
    with pytest.raises(UserError, match="none to train on"):
        open_parquet(str(tmp_path))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0, 1])
    content = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cannot read .*copy a damaged file again"):
        open_parquet(str(tmp_path))


def test_a_damaged_image_stays_one_bad_image(tmp_path: Path) -> None:
    rows = [{"bytes": b"no image", "path": "a"}, {"bytes": None, "path": None}]
    write_columns(
        tmp_path / "t.parquet", image=[*rows, {"bytes": jpeg(3), "path": "c"}], label=[0] * 3
    )
    train = open_parquet(str(tmp_path))["train"]
    with pytest.raises(BrokenImageError):
        read_rgb(train.read(0))
    with pytest.raises(OSError, match="holds no image"):
        train.read(1)
    assert gray(train, 2) == 3


def test_rows_are_taken_and_held_out_as_everywhere(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0, 1] * 10)
    whole = open_parquet(str(tmp_path))["train"]
    part = whole.take(np.array([7, 3]))
    assert (gray(part, 0), gray(part, 1)) == (7, 3)
    assert part.names.tolist() == whole.names[[7, 3]].tolist()
    assert part.take(np.array([1])).labels.tolist() == [1]
    halves = open_splits(str(tmp_path), val_fraction=0.2)
    assert (len(halves["train"]), len(halves["val"])) == (16, 4)
    assert digest(whole) == digest(open_parquet(str(tmp_path))["train"]) != digest(part)


def test_workers_get_the_table_by_its_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"bytes": rng.bytes(100_000), "path": str(n)} for n in range(20)]
    write_columns(tmp_path / "train.parquet", image=rows, label=[0] * 20)
    train = open_parquet(str(tmp_path))["train"]
    content = pickle.dumps(train)
    assert len(content) < 20_000
    assert pickle.loads(content).read(11) == rows[11]["bytes"]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(train.read, range(20)) == [row["bytes"] for row in rows]


def hub(monkeypatch: pytest.MonkeyPatch, answer: object) -> list[tuple[object, ...]]:
    """Let the hub give an answer, or an error; returns what it was asked for."""
    asked: list[tuple[object, ...]] = []

    def load_dataset(*names: object) -> object:
        asked.append(names)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_set_of_the_hub_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = {"img": [{"bytes": jpeg(5), "path": None}] * 3, "label": [0, 1, 1]}
    table = datasets.Dataset.from_dict(rows, features=features)
    asked = hub(monkeypatch, datasets.DatasetDict({"train": table, "test": table.select([2])}))
    found = open_splits("hf:owner/name:small")
    assert asked == [("owner/name", "small")]
    assert isinstance(found["train"], ParquetImages)
    assert (found["train"].class_names, found["val"].labels.tolist()) == (("a", "b"), [1])
    assert gray(found["val"], 0) == 5
    open_hub("owner/name")
    assert asked[1] == ("owner/name", None)


def test_what_the_hub_refuses_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, ConnectionError("Couldn't reach 'owner/name' on the Hub"))
    with pytest.raises(UserError, match=r"Couldn't reach.*`hf auth login`.*without network"):
        open_hub("owner/name")
    hub(monkeypatch, datasets.DatasetDict({"extra": None}))
    with pytest.raises(UserError, match="has the splits extra: expected one named train"):
        open_hub("owner/name")
    for name in ("cifar10", "../secrets", "owner/name:", "a/b/c"):
        with pytest.raises(UserError, match="expected hf:owner/name"):
            open_hub(name)


def test_the_hub_is_named_once_and_its_tries_are_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("huggingface_hub.utils._http")
    levels = []

    def load_dataset(*names: object) -> object:
        levels.append(logger.getEffectiveLevel())
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    before = logger.getEffectiveLevel()
    with pytest.raises(UserError, match="no network"):
        open_hub("owner/name")
    assert levels == [logging.ERROR]
    assert logger.getEffectiveLevel() == before < logging.ERROR
    assert capsys.readouterr().err == "asking the Hugging Face hub for owner/name\n"


def test_without_the_library_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "train.parquet", [0])
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert is_parquet(str(tmp_path))
    with pytest.raises(UserError, match=r"pip install 'varlit\[formats\]'"):
        parquet.open_parquet(str(tmp_path))
