"""References by all their names: files, folders, the data behind a token cache."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from varlit.callbacks.token_writer import image_settings
from varlit.data.digits import DigitsDataModule
from varlit.data.tokens.manifest import CacheSpec, begin_cache
from varlit.data.tokens.writer import TokenShardWriter, merge_manifest
from varlit.errors import UserError
from varlit.metrics.image_features import ImageFeatures
from varlit.metrics.networks import FeatureNetwork
from varlit.training import evaluation_references
from varlit.training.evaluation_config import EvaluationConfig
from varlit.training.evaluation_references import check_given, open_references


class Means(nn.Module):
    def forward(self, images):
        return images.float().mean(dim=(2, 3)) / 255


@pytest.fixture
def network():
    return FeatureNetwork(Means(), "means")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VARLIT_CACHE", str(tmp_path / "cached"))


@pytest.fixture
def photos(tmp_path) -> Path:
    """12 images of 16 px in class folders below train/, 6 below val/."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for name in ("cats", "dogs"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


def config(reference, **others):
    given = {"quick": 10, "batch_size": 4, "reference_workers": 0} | others
    return EvaluationConfig(reference=str(reference), **given)


def pixels_of(folder: Path) -> torch.Tensor:
    files = sorted(folder.rglob("*.png"))
    return torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files]))


def test_a_folder_of_images_is_seen_as_it_is(photos, network):
    (found,) = open_references(config(f"{photos}:val"), network, 16)
    pixels = pixels_of(photos / "val").double() / 255  # (N, H, W, 3)
    assert found.pool.count == 6
    torch.testing.assert_close(found.pool.mean, pixels.mean(dim=(0, 1, 2)), atol=1e-6, rtol=0)
    assert "val (16 px, ADM's centre crop)" in found.name
    flat = photos.parent / "flat"
    flat.mkdir()
    for i, file in enumerate(sorted((photos / "val").rglob("*.png"))):
        shutil.copy(file, flat / f"{i}.png")
    (again,) = open_references(config(flat, batch_size=3), network, 16)
    torch.testing.assert_close(again.pool.cov, found.pool.cov)


def test_several_references_keep_their_order_and_their_names(photos, network):
    given = config(f"{photos}:train,{photos}:val")
    train, val = open_references(given, network, 16)
    assert (train.pool.count, val.pool.count) == (12, 6)
    assert train.source_hash != val.source_hash


def test_a_reference_is_computed_once_until_an_image_changes(photos, network, monkeypatch):
    looks = []
    update = ImageFeatures.update
    monkeypatch.setattr(ImageFeatures, "update", lambda *args: (looks.append(1), update(*args))[1])
    given = config(f"{photos}:val")
    first = open_references(given, network, 16)[0]
    count = len(looks)
    assert open_references(given, network, 16)[0].source_hash == first.source_hash
    assert len(looks) == count > 0
    Image.new("RGB", (16, 16)).save(photos / "val/cats/0.png")
    assert open_references(given, network, 16)[0].source_hash != first.source_hash
    assert len(looks) > count


def test_the_images_behind_a_cache_are_a_reference_by_split(tmp_path, network):
    data = DigitsDataModule(image_size=16)
    spec = CacheSpec(
        tokenizer_hash="0" * 64,
        scales=(1, 2),
        codebook_size=8,
        codebook_dim=4,
        class_names=data.class_names,
        num_crops={"train": 1, "val": 1},
        shard_size=2048,
        num_images={"train": 1500, "val": 297},
        transform=data.describe(),
    )
    cache = tmp_path / "tokens"
    begin_cache(cache, spec)
    for split, count in spec.num_images.items():
        ids = torch.arange(count)
        rows = (torch.zeros(count, 5, dtype=torch.int64), ids % 10, ids, torch.zeros_like(ids))
        TokenShardWriter(cache, split, spec).add(*rows)
    merge_manifest(cache, spec, image_settings(data))
    given = config("data:val,data:train", batch_size=128)
    val, train = open_references(given, network, 16, cache=cache)
    assert (val.pool.count, train.pool.count) == (297, 1500)
    images = torch.cat([batch["image"] for batch in data.val_dataloader()])
    expected = ((images.double() + 1) / 2).mean(dim=(0, 2, 3))
    torch.testing.assert_close(val.pool.mean, expected, atol=3e-3, rtol=0)
    with pytest.raises(UserError, match="px"):
        open_references(given, network, 32, cache=cache)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{photos}", "has a train and a val part"),
        ("{photos}:val/cats", "does not exist"),
        ("data:test", "data:train or data:val"),
        ("s3://bucket/x", "streams are not read"),
        ("{root}/broken.npz", "cannot be read as an .npz"),
        ("{root}/large.npz", "images of 8 px; the samples have 16 px"),
    ],
)
def test_what_cannot_be_a_reference_is_refused(photos, network, place, message):
    root = photos.parent
    (root / "broken.npz").write_bytes(b"PK not a zip")
    np.savez(root / "large.npz", np.zeros((12, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=message):
        open_references(config(place.format(photos=photos, root=root)), network, 16)


def test_what_is_wrong_at_first_sight_is_said_together(photos):
    assert "give --reference FILE.npz" in check_given(EvaluationConfig(), None, "--reference")[0]
    wrong = check_given(config("no.npz,data:val"), None, "--reference")
    assert wrong[0] == "--reference no.npz: no such file"
    assert "token cache of this model is not known" in wrong[1]
    assert check_given(config("data"), photos, "--reference") == []


@pytest.mark.parametrize("world_size", [1, 3])
def test_processes_share_the_batches_out(photos, network, monkeypatch, world_size):
    seen = []
    for rank in range(world_size):
        place = (rank, world_size)
        monkeypatch.setattr(evaluation_references, "place_among_ranks", lambda p=place: p)
        images = evaluation_references._of_folder(f"{photos}:train", 16)
        load = evaluation_references._loader(images.source, config("x"), images.bad)
        seen += [batch["id"].tolist() for batch in load]
    assert sorted(seen) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


TWO_PROCESSES = """
import sys, torch
from torch import distributed
from varlit.metrics.networks import FeatureNetwork
from varlit.training.evaluation_config import EvaluationConfig
from varlit.cli.running.ending import end_at_once
from varlit.training.evaluation_references import open_references

class Means(torch.nn.Module):
    def forward(self, images):
        return images.float().mean(dim=(2, 3)) / 255

rank, store, *places = sys.argv[1:]
distributed.init_process_group("gloo", init_method="file://" + store, rank=int(rank), world_size=2)
network = FeatureNetwork(Means(), "means")
for place in places:
    config = EvaluationConfig(quick=10, batch_size=4, reference_workers=0, reference=place)
    try:
        found = open_references(config, network, 16)[0]
        print(found.source_hash, found.pool.count, flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
end_at_once(0)
"""


def run_two(folder: Path, *places: Path | str) -> list[list[str]]:
    """What each of two processes says of each reference, in lines."""
    here = os.environ | {"OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(rank), str(folder / "store"), *places],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=here | {"VARLIT_CACHE": str(folder / f"cache{rank}")},
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [run.communicate(timeout=120) for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], said
    return [out.splitlines() for out, _ in said]


@pytest.mark.slow
def test_what_one_process_cannot_read_ends_all_of_them_and_the_next_reference_is_opened(
    photos, network, tmp_path
):
    # Every other batch of 4, those that the second process reads, holds no images.
    broken = tmp_path / "broken"
    broken.mkdir()
    for i in range(32):
        Image.new("RGB", (16, 16), (i, i, i)).save(broken / f"{i:02d}.png")
        if i // 4 % 2:
            (broken / f"{i:02d}.png").write_bytes(b"no image")
    found = run_two(tmp_path, str(broken), str(tmp_path / "none.npz"), f"{photos}:train")
    assert "another process could not go on" in found[0][0]
    assert "images cannot be used" in found[1][0]
    assert all("no reference at" in lines[1] for lines in found)
    alone = open_references(config(f"{photos}:train"), network, 16)[0]
    assert [lines[2] for lines in found] == [f"{alone.source_hash} 12"] * 2


def repaint(file: Path) -> None:
    """Other pixels in as many bytes."""
    size = file.stat().st_size
    Image.new("RGB", (16, 16), (200, 200, 200)).save(file)
    assert file.stat().st_size == size


def test_images_that_were_repainted_in_as_many_bytes_are_another_reference(tmp_path, network):
    root = tmp_path / "bitmaps"
    root.mkdir()
    for i in range(6):
        Image.new("RGB", (16, 16), (10, 20, 30 + i)).save(root / f"{i}.bmp")
    before = open_references(config(root), network, 16)[0]
    for file in root.iterdir():
        repaint(file)
    after = open_references(config(root), network, 16)[0]
    assert after.source_hash != before.source_hash
    torch.testing.assert_close(after.pool.mean, torch.full((3,), 200 / 255, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["folders", "tar"])
def test_two_roots_of_the_same_names_are_two_references_and_a_copy_is_the_same_one(
    tmp_path, network, kind
):
    hashes = []
    for name, grey in (("one", 10), ("two", 200), ("copy", 10)):
        root = tmp_path / name
        for i in range(4):
            file = root / "all" / f"{i}.bmp"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (grey, grey, grey)).save(file)
        if kind == "tar":
            with tarfile.open(root / "x.tar", "w") as archive:
                for i in range(4):
                    archive.add(root / "all" / f"{i}.bmp", f"{i}.bmp")
                    (root / f"{i}.cls").write_text("0")
                    archive.add(root / f"{i}.cls", f"{i}.cls")
            shutil.rmtree(root / "all")
            for i in range(4):
                (root / f"{i}.cls").unlink()
        hashes.append(open_references(config(root), network, 16)[0].source_hash)
    assert hashes[0] == hashes[2] != hashes[1]
