import io
import os
import pickle
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from varlit.data.formats.encoded import digest
from varlit.data.formats.shards_file import Shard, ShardList, write_shard_list
from varlit.data.formats.tars import MAX_OPEN_SHARDS, TarImages, is_tars, open_tars
from varlit.data.images import ImageDataModule
from varlit.errors import UserError


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 40), (value, 0, 255 - value)).save(stream, "PNG")
    return stream.getvalue()


def write_shard(path: Path, labels: list[int], first: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for place, label in enumerate(labels):
            key = f"{first + place:04d}"
            for name, content in ((f"{key}.png", png(first + place)), (f"{key}.cls", label)):
                body = content if isinstance(content, bytes) else str(content).encode()
                entry = tarfile.TarInfo(name)
                entry.size = len(body)
                tar.addfile(entry, io.BytesIO(body))
    return path


def three(folder: Path) -> Path:
    for shard in range(3):
        write_shard(folder / f"train-{shard:06d}.tar", [0, 1, 2], first=3 * shard)
    write_shard(folder / "val-000000.tar", [2, 1], first=100)
    return folder


def opened(root: object, val_root: str = "") -> dict[str, TarImages]:
    splits = open_tars(str(root), val_root)
    assert all(isinstance(images, TarImages) for images in splits.values())
    return splits  # type: ignore[return-value]


def test_rows_are_in_the_order_of_shards_then_of_each_tar(tmp_path: Path) -> None:
    splits = opened(three(tmp_path))
    train, val = splits["train"], splits["val"]
    assert (len(train), len(val)) == (9, 2)
    assert train.labels.tolist() == [0, 1, 2] * 3
    assert val.labels.tolist() == [2, 1]
    assert train.class_names == val.class_names == ("0", "1", "2")
    assert [train.read(row) for row in range(9)] == [png(row) for row in range(9)]
    assert train.names[4] == b"train-000001.tar/0004.png"
    assert train.where(4) == f"{tmp_path / 'train-000001.tar'}: 0004.png"
    part = train.take(np.array([8, 0]))
    assert [part.read(0), part.read(1)] == [png(8), png(0)]
    assert part.labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train-000000.tar", "val-000000.tar"),
        ("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"),
        ("train_0.tar", "val_0.tar"),
        ("000000.tar", "val.tar"),
        ("retrained.tar", "valid-0.tar"),
    ],
)
def test_splits_are_told_by_the_names_of_tars(tmp_path: Path, train: str, val: str) -> None:
    write_shard(tmp_path / train, [0, 1, 2])
    write_shard(tmp_path / val, [1])
    write_shard(tmp_path / "test-000000.tar", [1])
    splits = opened(tmp_path)
    assert {split: len(images) for split, images in splits.items()} == {"train": 3, "val": 1}


def test_a_pattern_and_a_single_tar(tmp_path: Path) -> None:
    three(tmp_path)
    splits = opened(tmp_path / "train-{000000..000001}.tar", str(tmp_path / "val-000000.tar"))
    assert (len(splits["train"]), len(splits["val"])) == (6, 2)
    assert list(opened(tmp_path / "train-000002.tar")) == ["train"]
    with pytest.warns(UserWarning, match=r"names 2 shard\(s\) that do not exist.*000003"):
        assert len(opened(tmp_path / "train-{000002..000004}.tar")["train"]) == 3
    with pytest.raises(UserError, match=r"none of the 3 files of .* exists"):
        opened(tmp_path / "x-{0..2}.tar")


def test_a_pattern_over_folders_keeps_names_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shard(tmp_path / name / "0.tar", [0])
    names = opened(tmp_path / "{a,b}" / "0.tar")["train"].names
    assert names.tolist() == [b"a/0.tar/0000.png", b"b/0.tar/0000.png"]


def listed(folder: Path, counts: tuple[int, ...], names: tuple[str, ...] = ("a", "b", "c")) -> None:
    shards = [Shard(f"train-{i:06d}.tar", count, 1, "") for i, count in enumerate(counts)]
    write_shard_list(ShardList(names, {"train": tuple(shards)}), folder)


def test_shards_json_names_classes_and_shards(tmp_path: Path) -> None:
    listed(three(tmp_path), (3, 3))
    splits = opened(tmp_path)
    assert list(splits) == ["train"]
    assert len(splits["train"]) == 6
    assert splits["train"].class_names == ("a", "b", "c")
    part = opened(tmp_path / "train-{000002..000002}.tar")["train"]
    assert part.class_names == ("a", "b", "c"), "also for a part of them"


def test_a_label_without_a_name_is_refused(tmp_path: Path) -> None:
    listed(three(tmp_path), (3, 3, 3), ("a", "b"))
    with pytest.raises(UserError, match="has label 2, but there are 2 class names"):
        opened(tmp_path)


def test_other_class_names_for_validation_are_refused(tmp_path: Path) -> None:
    listed(three(tmp_path / "one"), (3,))
    listed(three(tmp_path / "two"), (3,), ("c", "b", "a"))
    with pytest.raises(UserError, match="name other classes"):
        opened(tmp_path / "one", str(tmp_path / "two"))


def test_labels_without_bound_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [0, 123456789])
    with pytest.raises(UserError, match="has label 123456789"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("damage", "reason", "left"),
    [
        (lambda b: b[: len(b) // 3], "cut off", 7),
        (lambda b: b[:2048] + b"\xa5" * 2048 + b[4096:], "garbage", 7),
        (lambda b: b"", "empty", 6),
        (lambda b: bytes(len(b) + 512), "zeros", 6),
        (None, "No such file", 6),
    ],
)
def test_a_corrupt_shard_is_warned_of_and_the_rest_is_used(
    tmp_path: Path, damage: object, reason: str, left: int
) -> None:
    listed(three(tmp_path), (3, 3, 3))
    shard = tmp_path / "train-000001.tar"
    if callable(damage):
        shard.write_bytes(damage(shard.read_bytes()))
    else:
        shard.unlink()
    text = rf"1 of 3 train shards.*train-000001.tar \({reason}.*; {9 - left} of 9 images are miss"
    with pytest.warns(UserWarning, match=text):
        train = opened(tmp_path)["train"]
    assert len(train) == left
    assert all(len(train.read(row)) > 0 for row in range(left))


def test_damage_without_a_list_is_told_too(tmp_path: Path) -> None:
    (three(tmp_path) / "train-000001.tar").write_bytes(b"\xa5" * 5000)
    with pytest.warns(UserWarning, match="not a tar file.*the 6 images before the damage are used"):
        opened(tmp_path)


def test_nothing_but_corrupt_shards_is_refused(tmp_path: Path) -> None:
    for shard in three(tmp_path).glob("*.tar"):
        shard.write_bytes(b"")
    with pytest.raises(UserError, match=r"no image in the 3 train shard.*train-000000.tar \(empty"):
        opened(tmp_path)


def test_samples_that_are_left_out_are_counted_in_one_warning(tmp_path: Path) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for name, body in (("a.png", png(1)), ("a.cls", b"0"), ("b.png", png(2)), ("c.x", b"")):
                entry = tarfile.TarInfo(name)
                entry.size = len(body)
                tar.addfile(entry, io.BytesIO(body))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opened(tmp_path)
    assert len(caught) == 1
    text = "4 of 6 samples of .* are left out, such as 0.tar: b: no label"
    with pytest.warns(UserWarning, match=text):
        opened(tmp_path)


def test_a_list_that_counts_otherwise_is_warned_of(tmp_path: Path) -> None:
    listed(three(tmp_path), (3, 4, 3))
    with pytest.warns(UserWarning, match=r"has 9 train images, shards.json says 10"):
        opened(tmp_path)


def test_a_shard_that_vanishes_or_changes_is_an_oserror(tmp_path: Path) -> None:
    train = opened(three(tmp_path))["train"]
    (tmp_path / "train-000000.tar").unlink()
    with pytest.raises(FileNotFoundError):
        train.read(0)
    write_shard(tmp_path / "train-000001.tar", [0, 0])
    with pytest.raises(OSError, match="has changed"):
        train.read(3)
    assert train.read(6) == png(6)
    os.truncate(tmp_path / "train-000002.tar", 600)
    with pytest.raises(OSError, match="ends within the image"):
        train.read(6)


def test_a_run_goes_on_without_a_shard_that_breaks_meanwhile(tmp_path: Path) -> None:
    three(tmp_path)
    data = ImageDataModule(
        str(tmp_path), image_size=32, batch_size=9, num_workers=0, max_bad_share=1
    )
    os.truncate(tmp_path / "train-000001.tar", 0)
    with pytest.warns(UserWarning, match="skipped the bad image.*train-000001.tar: 000"):
        (batch,) = list(data.train_dataloader())
    assert len(batch["id"]) == 9
    assert not set(batch["id"].tolist()) & {3, 4, 5}


def test_a_copy_for_a_worker_holds_no_open_file(tmp_path: Path) -> None:
    train = opened(three(tmp_path))["train"]
    train.read(0)
    copy = pickle.loads(pickle.dumps(train))
    assert copy.read(5) == png(5)
    assert digest(copy) == digest(train)


def test_few_shards_are_open_at_a_time(tmp_path: Path) -> None:
    num_shards = MAX_OPEN_SHARDS + 20
    for shard in range(num_shards):
        write_shard(tmp_path / f"{shard:03d}.tar", [0], first=shard)
    train = opened(tmp_path)["train"]
    assert [train.read(row) for row in range(num_shards)] == [png(r) for r in range(num_shards)]
    links = [f"/proc/self/fd/{handle}" for handle in os.listdir("/proc/self/fd")]
    targets = [os.readlink(link) for link in links if os.path.lexists(link)]
    assert sum(target.startswith(str(tmp_path)) for target in targets) <= MAX_OPEN_SHARDS


def test_nothing_in_a_tar_is_taken_for_a_path(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, body in (("../../up.png", png(1)), ("../../up.cls", b"0")):
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
    assert opened(tmp_path)["train"].read(0) == png(1)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "a.tar.index.npz"}
    assert not (tmp_path.parents[1] / "up.png").exists()


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist: expected shards such as"):
        opened(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no \.tar file"):
        opened(tmp_path)
    write_shard(tmp_path / "test-0.tar", [0])
    with pytest.raises(UserError, match="validation or test shards alone"):
        opened(tmp_path)


def test_tars_are_told_from_other_formats(tmp_path: Path) -> None:
    assert not is_tars(str(tmp_path))
    assert not is_tars(str(tmp_path / "nowhere"))
    assert is_tars("/x/train-{000..099}.tar")
    three(tmp_path)
    assert is_tars(str(tmp_path))
