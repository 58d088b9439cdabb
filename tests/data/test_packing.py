import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from varlit.data.formats.folders import open_folders
from varlit.data.formats.shards_file import SHARDS_FILE, read_shard_list
from varlit.data.formats.tars import open_tars
from varlit.data.images import ImageDataModule
from varlit.data.packing import Packed, PackSettings, pack
from varlit.errors import UserError

IN_ORDER = PackSettings(shard_size=4, shuffle_seed=-1)
SHUFFLED = PackSettings(shard_size=4)


def noise(seed: int, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_tree(root: Path, num_images: int = 6, width: int = 48, height: int = 40) -> Path:
    for place, name in enumerate(("a cat", "d\u00f6g")):
        (root / name / "deep").mkdir(parents=True)
        for i in range(num_images):
            suffix = (".JPEG", ".png", ".v2.jpg")[i % 3]
            inside = root / name / ("deep" if i == 4 else "")
            noise(100 * place + i, width, height).save(inside / f"im\u00e4ge {i}{suffix}")
    return root


def bytes_of(out: Path) -> dict[str, str]:
    files = [*out.glob("*.tar"), out / SHARDS_FILE, *out.glob("*.txt")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def packed(tree: Path, out: Path, settings: PackSettings = SHUFFLED, workers: int = 1) -> Packed:
    return pack(tree, out, settings, workers)


def batches(root: Path) -> list[dict[str, torch.Tensor]]:
    data = ImageDataModule(str(root), image_size=32, batch_size=4, num_workers=0, val_fraction=0)
    loaders = [data.train_dataloader(), *data.predict_dataloader()]
    return [batch for loader in loaders for batch in loader]


def test_the_pixels_are_those_of_the_tree(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    packed(tree, tmp_path / "out", IN_ORDER)
    pairs = list(zip(batches(tree), batches(tmp_path / "out"), strict=True))
    assert len(pairs) == 6
    for one, other in pairs:
        for name in ("image", "label", "id"):
            assert torch.equal(one[name], other[name]), name


def test_train_and_val_folders_become_splits(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree" / "train")
    make_tree(tmp_path / "tree" / "val", 2)
    shards = packed(tmp_path / "tree", tmp_path / "out", IN_ORDER).shards
    assert {split: shards.count(split) for split in shards.splits} == {"train": 12, "val": 4}
    assert shards == read_shard_list(tmp_path / "out" / SHARDS_FILE)
    ours, theirs = open_tars(str(tmp_path / "out")), open_folders(str(tmp_path / "tree"))
    for split in ("train", "val"):
        assert ours[split].class_names == theirs[split].class_names == ("a cat", "d\u00f6g")
        assert ours[split].labels.tolist() == theirs[split].labels.tolist()
        for row in range(len(theirs[split])):
            path = theirs[split].read(row)
            assert isinstance(path, Path)
            assert ours[split].read(row) == path.read_bytes()


def test_the_list_tells_the_truth_of_each_shard(tmp_path: Path) -> None:
    shards = packed(make_tree(tmp_path / "tree"), tmp_path / "out").shards
    assert [shard.file for shard in shards.splits["train"]] == [
        f"train-{i:06d}.tar" for i in range(3)
    ]
    for shard in shards.splits["train"]:
        content = (tmp_path / "out" / shard.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == shard.sha256
        assert (len(content), shard.count) == (shard.num_bytes, 4)


def test_a_part_is_held_out_on_request(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    settings = PackSettings(shard_size=4, val_fraction=0.25)
    shards = packed(tree, tmp_path / "out", settings).shards
    assert {split: shards.count(split) for split in shards.splits} == {"train": 9, "val": 3}
    make_tree(tmp_path / "both" / "train")
    make_tree(tmp_path / "both" / "val")
    with pytest.raises(UserError, match="val folder of its own"):
        packed(tmp_path / "both", tmp_path / "out2", settings)


def test_the_shuffle_mixes_classes_and_depends_on_its_seed(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    orders = []
    for seed in (0, 1, -1):
        packed(tree, tmp_path / str(seed), PackSettings(4, shuffle_seed=seed))
        images = open_tars(str(tmp_path / str(seed)))["train"]
        orders.append([images.read(row) for row in range(len(images))])
    assert orders[0] != orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    first = open_tars(str(tmp_path / "0"))["train"].labels[:4].tolist()
    assert set(first) == {0, 1}


def test_one_and_three_workers_write_the_same_bytes(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    (tree / "a cat" / "broken.jpg").write_bytes(b"no image")
    packed(tree, tmp_path / "one")
    packed(tree, tmp_path / "three", workers=3)
    assert len(bytes_of(tmp_path / "one")) == 6
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "three")


PACK = "from varlit.cli.main import main; import sys; sys.exit(main(sys.argv[1:]))"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_packing_ends_in_the_same_bytes(tmp_path: Path, workers: int) -> None:
    tree = make_tree(tmp_path / "tree", 12, 500, 500)
    settings = PackSettings(shard_size=2, resize_px=450)
    packed(tree, tmp_path / "whole", settings)
    out = tmp_path / "out"
    flags = ["--shard_size", "2", "--resize_px", "450", "--workers", str(workers)]
    command = [sys.executable, "-c", PACK, "data", "pack", str(tree), str(out), *flags]
    num_seen = 0
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while len(list(out.glob("*.tar"))) <= num_seen:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        num_seen = len(list(out.glob("*.tar")))
        assert not (out / SHARDS_FILE).exists()
    assert 3 <= num_seen < 12
    time.sleep(0.3)  # what a worker was at when its parent died, it may not touch any more
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    result = packed(tree, out, settings)
    assert result.num_found >= num_seen - 2
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    same = [path for path, mtime_ns in before.items() if path.stat().st_mtime_ns == mtime_ns]
    assert len(same) == result.num_found, "finished shards are left alone"


def test_a_shard_that_is_lost_or_cut_is_packed_again(tmp_path: Path) -> None:
    tree, out = make_tree(tmp_path / "tree"), tmp_path / "out"
    packed(tree, out)
    before = bytes_of(out)
    (out / "train-000000.tar").unlink()
    os.truncate(out / "train-000001.tar", 1000)
    (out / ".pack" / "train-000002.tar.json").write_text("{")
    assert packed(tree, out).num_found == 0
    assert bytes_of(out) == before
    assert packed(tree, out).num_found == 3


def test_another_source_or_other_settings_are_refused(tmp_path: Path) -> None:
    tree, out = make_tree(tmp_path / "tree"), tmp_path / "out"
    packed(tree, out)
    with pytest.raises(UserError, match="begun with --shard_size 4, now it is 5"):
        packed(tree, out, PackSettings(5))
    with pytest.raises(UserError, match="begun with --shuffle_seed 0, now it is -1"):
        packed(tree, out, IN_ORDER)
    with pytest.raises(UserError, match=r"begun with --val_fraction 0\.0, now it is 0\.5"):
        packed(tree, out, replace(SHUFFLED, val_fraction=0.5))
    noise(9, 40, 40).save(tree / "a cat" / "new.png")
    with pytest.raises(UserError, match="images have come or gone"):
        packed(tree, out)


def test_foreign_shards_and_a_folder_within_the_tree_are_refused(tmp_path: Path) -> None:
    tree, out = make_tree(tmp_path / "tree"), tmp_path / "out"
    with pytest.raises(UserError, match="would be taken for a class"):
        packed(tree, tree / "shards")
    out.mkdir()
    (out / "train-000000.tar").write_bytes(b"")
    with pytest.raises(UserError, match="did not make"):
        packed(tree, out)


def test_two_packings_do_not_share_a_folder(tmp_path: Path) -> None:
    import fcntl

    tree, out = make_tree(tmp_path / "tree"), tmp_path / "out"
    packed(tree, out)
    with (out / ".pack" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another `varlit data pack`"):
            packed(tree, out)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shard_size": 0}, "--shard_size is 0"),
        ({"val_fraction": 1.0}, "--val_fraction is 1.0"),
        ({"shuffle_seed": -2}, "--shuffle_seed is -2"),
        ({"resize_px": -1}, "--resize_px is -1"),
    ],
)
def test_settings_out_of_bounds_are_refused(
    tmp_path: Path, changes: dict[str, float], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        packed(tmp_path, tmp_path / "out", PackSettings(**changes))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--workers is 0"):
        packed(tmp_path, tmp_path / "out", workers=0)


def test_broken_files_are_left_out_and_named(tmp_path: Path) -> None:
    tree, out = make_tree(tmp_path / "tree"), tmp_path / "out"
    whole = tree / "a cat" / "im\u00e4ge 0.JPEG"
    whole.write_bytes(whole.read_bytes()[:-700])
    (tree / "a cat" / "text.png").write_bytes(b"words")
    (tree / "a cat" / "gone\n.png").symlink_to("nowhere")
    result = packed(tree, out, IN_ORDER)
    names = [Path(bad.name).name for bad in result.bad]
    assert sorted(names) == ["gone\n.png", "im\u00e4ge 0.JPEG", "text.png"]
    assert result.shards.count("train") == 11
    lines = (out / "bad_files.txt").read_text().splitlines()
    assert len(lines) == 3
    assert all("\t" in line for line in lines)
    assert len(open_tars(str(out))["train"]) == 11


def test_a_tree_without_a_good_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "1.png").write_bytes(b"words")
    with pytest.raises(UserError, match="none of the train images can be read"):
        packed(tmp_path / "tree", tmp_path / "out")


def test_images_are_made_smaller_on_request_and_never_larger(tmp_path: Path) -> None:
    tree = tmp_path / "tree" / "a"
    tree.mkdir(parents=True)
    noise(0, 90, 60).save(tree / "0.png")
    noise(1, 60, 120).save(tree / "1.jpg")
    noise(2, 30, 300).save(tree / "2.jpg")
    packed(tmp_path / "tree", tmp_path / "out", PackSettings(shuffle_seed=-1, resize_px=40))
    images = open_tars(str(tmp_path / "out"))["train"]
    expected = noise(0, 90, 60).resize((60, 40), Image.Resampling.LANCZOS)
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        shrunk = [Image.open(tar.extractfile(m)) for m in tar if not m.name.endswith(".cls")]
        assert [image.size for image in shrunk] == [(60, 40), (40, 80), (30, 300)]
        assert [image.format for image in shrunk] == ["PNG", "JPEG", "JPEG"]
        assert np.array_equal(np.asarray(shrunk[0]), np.asarray(expected)), "lossless stays so"
    assert images.read(2) == (tree / "2.jpg").read_bytes()


@pytest.mark.slow
def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    packed(make_tree(tmp_path / "tree"), tmp_path / "out")
    images = open_tars(str(tmp_path / "out"))["train"]
    pattern = str(tmp_path / "out" / "train-{000000..000002}.tar")
    samples = list(wds.WebDataset(pattern, shardshuffle=False))
    assert len(samples) == len(images) == 12
    for row, sample in enumerate(samples):
        name = images.names[row].decode()
        key, suffix = name.split("/", 1)[1].split(".")
        assert (sample["__key__"], int(sample["cls"])) == (key, images.labels[row])
        assert sample[suffix] == images.read(row)


def test_the_headers_say_nothing_of_the_machine(tmp_path: Path) -> None:
    packed(make_tree(tmp_path / "tree"), tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        for member in tar:
            about = (member.mtime, member.uid, member.gid, member.uname, member.mode)
            assert about == (0, 0, 0, "", 0o644)
            assert member.name.isascii()
            assert member.name.count(".") == 1
    spec = json.loads((tmp_path / "out" / ".pack" / "spec.json").read_text())
    assert spec["shard_size"] == 4
