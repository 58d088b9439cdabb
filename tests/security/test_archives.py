"""Archives and lists whose names lead out of their folder."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets.utils

from varlit.data.formats.chunk_index import read_index
from varlit.data.formats.downloads import CIFAR10, open_torchvision
from varlit.data.formats.remote import open_remote
from varlit.data.formats.shards_file import read_shard_list
from varlit.data.formats.tar_index import index_tar
from varlit.data.formats.unpacking import unpack_tar
from varlit.data.tokens.manifest import ShardRecord
from varlit.errors import UserError

Add = Callable[[tarfile.TarFile], None]


def file(name: str, content: bytes = b"x") -> Add:
    def add(tar: tarfile.TarFile) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))

    return add


def special(name: str, kind: bytes, target: str = "") -> Add:
    def add(tar: tarfile.TarFile) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        tar.addfile(member)

    return add


HOSTILE: dict[str, list[Add]] = {
    "up": [file("../escaped")],
    "up from below": [file("a/../../escaped")],
    "absolute": [file("{outside}/escaped")],
    "windows": [file("..\\escaped"), file("C:\\escaped")],
    "symlink": [special("link", tarfile.SYMTYPE, "/etc/passwd")],
    "symlink inside": [file("a"), special("link", tarfile.SYMTYPE, "a")],
    "through a symlink": [special("d", tarfile.SYMTYPE, "{outside}"), file("d/escaped")],
    "hardlink": [special("link", tarfile.LNKTYPE, "../secret")],
    "device": [special("disk", tarfile.BLKTYPE)],
    "character device": [special("null", tarfile.CHRTYPE)],
    "pipe": [special("pipe", tarfile.FIFOTYPE)],
}


def pack(archive: Path, members: list[Add], outside: Path) -> None:
    """Write a tar as `tarfile` would not by itself: names are kept as they are."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        file("cifar-10-batches-py/fine")(tar)
        real = tar.addfile

        def addfile(member: tarfile.TarInfo, content: io.BytesIO | None = None) -> None:
            member.name = member.name.replace("{outside}", str(outside))
            member.linkname = member.linkname.replace("{outside}", str(outside))
            real(member, content)

        tar.addfile = addfile  # type: ignore[method-assign, assignment]
        for add in members:
            add(tar)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that nothing may get into, with a file that nothing may touch."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    return folder


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.slow
def test_a_tar_that_leads_elsewhere_is_refused(kind: str, tmp_path: Path, outside: Path) -> None:
    pack(tmp_path / "x.tar.gz", HOSTILE[kind], outside)
    with pytest.raises(ValueError, match="its member '"):
        unpack_tar(tmp_path / "x.tar.gz", tmp_path / "target")
    assert not list(tmp_path.rglob("*escaped*"))
    assert not list(outside.iterdir())
    assert (tmp_path / "secret").stat().st_nlink == 1
    left = {path.name for path in (tmp_path / "target").rglob("*") if not path.is_dir()}
    assert left <= {"fine", "a"}, "no link, no device"


@pytest.mark.parametrize("kind", ["up", "absolute", "through a symlink", "hardlink"])
def test_a_downloaded_archive_that_leads_elsewhere_is_refused_and_leaves_nothing(
    kind: str, tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VARLIT_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(
        torchvision.datasets.utils, "check_integrity", lambda file, md5: os.path.isfile(file)
    )
    archive = tmp_path / "data" / "cifar10" / CIFAR10.file
    pack(archive, HOSTILE[kind], outside)
    with pytest.raises(UserError, match=r"cannot unpack .*its member '"):
        open_torchvision("cifar10")
    assert sorted(path.name for path in archive.parent.iterdir()) == [".lock", archive.name]
    assert not list(outside.iterdir())


def test_a_harmless_tar_is_unpacked_without_its_owners_and_rights(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        member = tarfile.TarInfo("a/b")
        member.size, member.mode, member.uid = 1, 0o6777, 12345
        tar.addfile(member, io.BytesIO(b"x"))
    unpack_tar(tmp_path / "x.tar", tmp_path / "target")
    found = tmp_path / "target" / "a" / "b"
    assert found.read_bytes() == b"x"
    assert found.stat().st_mode & 0o6000 == 0, "no program runs as somebody else"
    assert found.stat().st_uid == os.getuid()


def test_shards_are_read_in_place_and_never_unpacked(tmp_path: Path, outside: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    members = [file("../escaped.jpg"), file("../escaped.cls", b"1")]
    members += [special("link.jpg", tarfile.SYMTYPE, "/etc/passwd"), file("link.cls", b"1")]
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for add in members:
            add(tar)
    before = sorted(tmp_path.rglob("*"))
    index = index_tar(folder / "train-0.tar")
    assert index.names.tolist() == [b"../escaped.jpg"], "a name alone; links are no images"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "name", ["../x.tar", "a/../../x.tar", "/etc/x.tar", "http://h/x.tar", "pipe://x", ".."]
)
@pytest.mark.slow
def test_a_list_of_shards_names_files_below_its_folder_alone(name: str, tmp_path: Path) -> None:
    listed = {
        "format": "varlit shards",
        "version": 1,
        "class_names": ["a"],
        "splits": {"train": [{"file": name, "count": 1, "num_bytes": 1, "sha256": ""}]},
    }
    (tmp_path / "shards.json").write_text(json.dumps(listed))
    with pytest.raises(UserError, match="is not below the folder"):
        read_shard_list(tmp_path / "shards.json")


@pytest.mark.parametrize("name", ["$(touch trap)", "a;touch trap", "`touch trap`", "a b", "-o x"])
def test_a_list_of_streamed_shards_puts_no_words_into_a_command(
    name: str, tmp_path: Path, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = name.replace("trap", trap.name)
    listed = {
        "format": "varlit shards",
        "version": 1,
        "class_names": ["a"],
        "splits": {"train": [{"file": name, "count": 1, "num_bytes": 1, "sha256": ""}]},
    }
    (tmp_path / "shards.json").write_text(json.dumps(listed))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="expected file names of letters"):
        open_remote("pipe:cat {x}.tar".replace("{x}.tar", f"{tmp_path}/train-{{0..1}}.tar"))


@pytest.mark.parametrize("name", ["../chunk-0.bin", "/etc/passwd", "a/b.bin"])
def test_an_index_of_chunks_names_files_of_its_folder_alone(name: str, tmp_path: Path) -> None:
    content = {"chunks": [{"filename": name, "chunk_size": 1}], "config": {}}
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="expected a file here"):
        read_index(tmp_path)


def test_a_manifest_names_its_own_shards_alone() -> None:
    sizes = dict.fromkeys(("tokens", "labels", "ids"), 1)
    record = {"count": 1, "skipped": 0, "num_bytes": sizes, "sha256": sizes}
    for stem in ("../other/train-00000", "/etc/train-00000", "train-00001"):
        with pytest.raises(ValueError, match="the record of"):
            ShardRecord.of({**record, "stem": stem}, "train-00000")
    assert np.all([ShardRecord.of({**record, "stem": "train-00000"}, "train-00000").count == 1])
