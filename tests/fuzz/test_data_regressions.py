"""What the fuzzer found in data and arrays, each with a small input of its own."""

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fuzz import data_files, picture_files
from tests.fuzz.mutations import write_zip
from varlit.arrays import array_names, read_arrays
from varlit.data.formats import folder_index, tar_index
from varlit.data.formats.chunks import open_chunks
from varlit.data.formats.shards_file import expand_braces
from varlit.data.tokens.manifest import read_manifest
from varlit.data.tokens.reader import open_tokens
from varlit.errors import UserError
from varlit.metrics.frechet import read_statistics
from varlit.metrics.npz_images import NpzImages

Change = Callable[[dict[str, Any]], object]


def npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


BAD_MEMBERS = {
    "tokens that do not end": npy("{'descr': '<f8', 'shape': (2,), } \xbd{"),
    "no array": b"no array at all",
    "an endless shape": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,)}"),
    "nothing": b"",
}


@pytest.mark.parametrize("member", BAD_MEMBERS.values(), ids=BAD_MEMBERS)
def test_an_npz_with_a_member_that_is_no_array_is_refused(member: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(write_zip([(f"{name}.npy", member) for name in ("mu", "sigma", "arr_0")]))
    assert array_names(path) == ["mu", "sigma", "arr_0"]
    with pytest.raises(ValueError, match=r"\w"):
        read_arrays(path, "mu")
    for read in (read_statistics, NpzImages):
        with pytest.raises(UserError, match=r"a\.npz(: arr_0 must be| cannot be read)"):
            read(path)


def test_an_npz_of_an_unknown_compression_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, mu=np.zeros(2), sigma=np.eye(2), arr_0=np.zeros((1, 2, 2, 3), np.uint8))
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x01\x02", 10), (b"PK\x03\x04", 8)):
        start = content.find(mark)
        while start >= 0:
            content[start + place] = 77
            start = content.find(mark, start + 1)
    path.write_bytes(content)
    for read in (read_statistics, NpzImages):
        with pytest.raises(UserError, match=r"a\.npz cannot be read"):
            read(path)


@pytest.mark.parametrize("count", [np.array([1, 2]), np.array("x"), np.array(-5), np.array(2.5)])
def test_statistics_of_no_number_of_images_are_refused(count: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mu=np.zeros(2), sigma=np.eye(2), count=count)
    with pytest.raises(UserError, match="count must be a number of images"):
        read_statistics(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "change",
    [
        {"names": np.array(["a", "b"])},
        {"places": np.zeros((3, 2))},
        {"places": np.array([[0, 0], [2**62, 2**62], [0, 1]])},
        {"places": np.array([[2**62, 0], [2**62, 1], [0, 1]])},
        {"places": np.array([[0, 0], [1, 1], [-1, 0]])},
        {"num_skipped": "x"},
        {"skipped": 5},
        {"version": 9},
    ],
    ids=str,
)
def test_an_index_of_a_tar_that_leads_elsewhere_is_none(
    change: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "a.npz"
    about = {"version": 1, "num_bytes": 99, "mtime_ns": 5, "num_skipped": 0}
    about |= {"skipped": "", "damage": ""}
    arrays = {"names": np.array([b"a", b"b"]), "places": np.array([[0, 9], [9, 9], [0, 1]])}

    def load() -> Any:
        np.savez(path, **arrays, about=np.array(json.dumps(about)))
        return tar_index._load(path)

    assert len(load()) == 2
    arrays |= {name: value for name, value in change.items() if name in arrays}
    about |= {name: value for name, value in change.items() if name in about}
    assert load() is None


@pytest.mark.parametrize("name", ["names", "folders", "stamps", "num_names", "num_folders"])
@pytest.mark.parametrize("wrong", [np.array([1]), np.array(["x"]), np.zeros((2, 2)), b"no array"])
def test_an_index_of_folders_of_other_types_is_none(
    name: str, wrong: np.ndarray | bytes, tmp_path: Path
) -> None:
    data_files.make_folder_index(tmp_path)
    path = tmp_path / "index.npz"
    arrays = read_arrays(path)
    assert folder_index._read(path)
    if isinstance(wrong, bytes):
        with zipfile.ZipFile(path) as archive:
            members = [(n, archive.read(n)) for n in archive.namelist()]
        members = [(n, wrong if n == f"{name}.npy" else content) for n, content in members]
        path.write_bytes(write_zip(members))
    else:
        np.savez(path, **(arrays | {name: wrong}))
    assert folder_index._read(path) == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["num_crops"].update(train=2),
        lambda c: c["num_crops"].update(train=3.0),
        lambda c: c.update(scales=[1, 3]),
        lambda c: c.update(scales=[1, "a"]),
        lambda c: c.update(scales=[1, [2]]),
        lambda c: c.update(codebook_size="64"),
        lambda c: c.update(tokenizer_hash=5),
        lambda c: c.update(transform=[1]),
        lambda c: c["num_images"].update(train=7),
        lambda c: c["splits"]["train"]["shards"].pop(),
        lambda c: c["splits"]["train"].update(count=5),
        lambda c: c["splits"]["train"]["shards"][0].update(count=4.0),
        lambda c: c["splits"]["train"]["shards"][0]["num_bytes"].update(tokens="188"),
    ],
)
def test_a_manifest_that_does_not_fit_its_files_is_refused(change: Change, tmp_path: Path) -> None:
    data_files.make_cache(tmp_path)
    assert len(open_tokens(tmp_path, "train")) == 6
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError):
        open_tokens(tmp_path, "train")
    assert read_manifest.__doc__


def test_labels_of_chunks_that_nobody_can_name_are_refused_at_once(tmp_path: Path) -> None:
    picture_files.make_chunks(tmp_path)
    path = tmp_path / "chunk-0-0.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-8] + (2**40).to_bytes(8, "little"))
    with pytest.raises(UserError, match=r"have the label 1099511627776: .*classes\.txt"):
        open_chunks(str(tmp_path))
    index = tmp_path / "index.json"
    index.write_text(index.read_text().replace('["bytes", "int"]', "5"))
    with pytest.raises(UserError, match="hold no items with an image"):
        open_chunks(str(tmp_path))


@pytest.mark.parametrize(
    "pattern",
    ["{a," * 3000 + "}" * 3000, "{a,b}" * 2000, "{0..1" + "0" * 5000 + "}"],
    ids=["deep", "many", "far"],
)
def test_patterns_without_end_are_refused(pattern: str) -> None:
    with pytest.raises(UserError):
        expand_braces(pattern)
