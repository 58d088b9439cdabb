import hashlib
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import scipy.io
import torchvision.datasets
import torchvision.datasets.utils
from PIL import Image

from varlit.data.decoding import read_rgb
from varlit.data.formats import cifar_batches, downloads
from varlit.data.formats.cifar_batches import read_batch
from varlit.data.formats.downloads import CIFAR10, FLOWERS, IMAGENETTE, open_torchvision
from varlit.data.formats.splits import open_splits
from varlit.errors import UserError


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Download into a folder of the test, with no network."""

    def refuse(url: str, *_: object, **__: object) -> NoReturn:
        raise OSError(f"no network for {url}")

    monkeypatch.setenv("VARLIT_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", refuse)
    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", refuse)


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take any file for the one of its name."""
    monkeypatch.setattr(
        torchvision.datasets.utils, "check_integrity", lambda file, md5: os.path.isfile(file)
    )
    monkeypatch.setattr(cifar_batches, "_is_genuine", lambda content, md5: True)


class OldPickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes bytes as Python 2 wrote its texts, which is what CIFAR's batches hold."""

    dispatch = pickle._Pickler.dispatch.copy()  # type: ignore[attr-defined]

    def save_bytes(self, content: bytes) -> None:
        self.write(b"T" + len(content).to_bytes(4, "little") + content)
        self.memoize(content)

    dispatch[bytes] = save_bytes


def write_old(file: Path, content: object) -> None:
    with file.open("wb") as opened:
        OldPickler(opened, protocol=2).dump(content)
    words = file.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    file.write_bytes(words)


def write_cifar(folder: Path) -> None:
    """Write six batches of two images, image i of batch b of gray 10 b + i."""
    folder.mkdir(parents=True)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for batch, name in enumerate(names):
        pixels = np.zeros((2, 3072), np.uint8)
        pixels[:] = np.array([[10 * batch], [10 * batch + 1]])
        pixels[1, 1024:2048] = 200  # the green plane
        files = [b"%d_%d.png" % (batch, n) for n in range(2)]
        old = {b"batch_label": b"x", b"labels": [batch, 9], b"data": pixels, b"filenames": files}
        write_old(folder / name, old)


def pack(archive: Path, folder: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)


def jpeg(file: Path, gray: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (gray, gray, gray)).save(file, "JPEG")


def gray(images: Any, row: int) -> int:
    return read_rgb(images.read(row)).getpixel((4, 4))[0]


@pytest.mark.usefixtures("trusting")
def test_cifar_opens_from_its_archive(tmp_path: Path) -> None:
    write_cifar(tmp_path / CIFAR10.holds)
    pack(tmp_path / "data" / "cifar10" / CIFAR10.file, tmp_path / CIFAR10.holds)
    found = open_splits("torchvision:cifar10")
    train, val = found["train"], found["val"]
    assert (len(train), len(val)) == (10, 2)
    assert train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert train.class_names[val.labels[0]] == "dog"
    image = train.read(3)
    assert isinstance(image, Image.Image)
    assert (image.size, image.getpixel((31, 0))) == ((32, 32), (11, 200, 11))
    assert train.names[3] == b"1_1.png"
    assert gray(train.take(np.array([9, 0])), 0) == 41
    assert "0_0.png" in train.where(0)
    (tmp_path / "data" / "cifar10" / CIFAR10.file).unlink()
    assert len(open_torchvision("cifar10")["train"]) == 10


def test_rows_of_an_array_in_columns_keep_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar_batches, "_is_genuine", lambda content, md5: True)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    batch = {b"labels": [0, 1, 2, 3], b"data": np.asfortranarray(pixels), b"filenames": [b"a"] * 4}
    write_old(tmp_path / "batch", batch)
    found = read_batch(tmp_path / "batch", "")
    assert np.array_equal(found.pixels, pixels.reshape(4, 3, 32, 32).transpose(0, 2, 3, 1))


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.file}",)


@pytest.mark.usefixtures("trusting")
def test_code_in_a_batch_is_refused_and_not_run(tmp_path: Path) -> None:
    write_old(tmp_path / "batch", {b"data": Bomb(tmp_path / "boom")})
    with pytest.raises(UserError, match=r"asks for posix.system, which is code"):
        read_batch(tmp_path / "batch", "")
    assert not (tmp_path / "boom").exists()
    for content in (b"", b"nonsense", pickle.dumps([1]), pickle.dumps({b"data": 1})):
        (tmp_path / "batch").write_bytes(content)
        with pytest.raises(UserError, match="is not a batch of CIFAR"):
            read_batch(tmp_path / "batch", "")


def test_a_batch_with_another_checksum_is_not_opened(tmp_path: Path) -> None:
    write_old(tmp_path / "batch", {b"data": Bomb(tmp_path / "boom")})
    with pytest.raises(UserError, match=r"its md5 is not 1234. Remove"):
        read_batch(tmp_path / "batch", "1234")
    md5 = hashlib.md5((tmp_path / "batch").read_bytes()).hexdigest()
    with pytest.raises(UserError, match="which is code"):
        read_batch(tmp_path / "batch", md5)
    with pytest.raises(UserError, match=r"cannot read .*start again"):
        read_batch(tmp_path / "missing", "")


@pytest.mark.usefixtures("trusting")
def test_imagenette_opens_from_its_archive(tmp_path: Path) -> None:
    for number, file in enumerate(
        ("train/n01440764/a.JPEG", "train/n03888257/b.JPEG", "val/n03888257/c.JPEG")
    ):
        jpeg(tmp_path / IMAGENETTE.holds / file, 10 * number)
    pack(tmp_path / "data" / "imagenette" / IMAGENETTE.file, tmp_path / IMAGENETTE.holds)
    found = open_splits("torchvision:imagenette")
    assert found["train"].class_names == ("n01440764", "n03888257")
    assert (found["val"].labels.tolist(), gray(found["val"], 0)) == ([1], 20)


@pytest.mark.usefixtures("trusting")
def test_flowers_train_on_all_but_the_validation_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data" / "flowers102" / "flowers-102"
    for number in range(1, 7):
        jpeg(tmp_path / "jpg" / f"image_{number:05d}.jpg", 10 * number)
    pack(root / FLOWERS[0].file, tmp_path / "jpg")
    scipy.io.savemat(root / "imagelabels.mat", {"labels": [[77, 1, 102, 2, 2, 1]]})
    splits = {"trnid": [[6, 2]], "valid": [[3, 4]], "tstid": [[1, 5]]}
    scipy.io.savemat(root / "setid.mat", splits)
    found = open_splits("torchvision:flowers102")
    train, val = found["train"], found["val"]
    assert [gray(train, row) for row in range(4)] == [10, 20, 50, 60]
    assert train.labels.tolist() == [76, 0, 1, 0]
    assert (val.labels.tolist(), gray(val, 0)) == ([101, 1], 30)
    assert len(train.class_names) == 102
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_check_integrity", lambda self: True)
    known = torchvision.datasets.Flowers102(tmp_path / "data" / "flowers102", "test")
    assert [label for _, label in known] == [train.labels[row] for row in (0, 2)]


@pytest.mark.parametrize(
    ("name", "file", "md5"),
    [
        ("cifar10", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
        ("imagenette", "imagenette2.tgz", "fe2fc210e6bb7c5664d602c3cd71e612"),
        ("flowers102", "102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
    ],
)
def test_without_network_the_error_says_which_file_to_put_where(
    tmp_path: Path, name: str, file: str, md5: str
) -> None:
    with pytest.raises(UserError, match=rf"{file}.*md5 {md5}.*put it into '{tmp_path}/data/{name}"):
        open_torchvision(name)
    left = [path.name for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert left in ([], [".lock"])


def test_a_damaged_archive_is_not_unpacked(tmp_path: Path) -> None:
    write_cifar(tmp_path / CIFAR10.holds)
    pack(tmp_path / "data" / "cifar10" / CIFAR10.file, tmp_path / CIFAR10.holds)
    with pytest.raises(UserError, match=r"tar.gz' is damaged, and it cannot be downloaded"):
        open_torchvision("cifar10")
    assert not (tmp_path / "data" / "cifar10" / CIFAR10.holds).exists()


@pytest.mark.usefixtures("trusting")
def test_a_broken_off_unpacking_leaves_nothing(tmp_path: Path) -> None:
    write_cifar(tmp_path / CIFAR10.holds)
    archive = tmp_path / "data" / "cifar10" / CIFAR10.file
    pack(archive, tmp_path / CIFAR10.holds)
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(UserError, match="cannot unpack"):
        open_torchvision("cifar10")
    assert sorted(path.name for path in archive.parent.iterdir()) == [".lock", archive.name]


def test_files_and_checksums_are_torchvisions() -> None:
    cifar, flowers = torchvision.datasets.CIFAR10, torchvision.datasets.Flowers102
    assert (CIFAR10.url, CIFAR10.md5, CIFAR10.holds) == (
        cifar.url,
        cifar.tgz_md5,
        cifar.base_folder,
    )
    assert torchvision.datasets.Imagenette._ARCHIVES["full"] == (IMAGENETTE.url, IMAGENETTE.md5)
    known = [flowers._file_dict[part] for part in ("image", "label", "setid")]
    assert [(download.file, download.md5) for download in FLOWERS] == known
    assert all(d.url.startswith(flowers._download_url_prefix) for d in FLOWERS)


def test_other_names_and_folders_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="expected one of torchvision:cifar10"):
        open_torchvision("mnist")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("VARLIT_DATA", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set VARLIT_DATA to a folder"):
        downloads.open_torchvision("cifar10")
