import importlib
import os
import shutil
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from varlit.data.formats import tar_stream
from varlit.data.formats.remote import open_remote, open_streamed
from varlit.data.formats.shards_file import ShardList, read_shard_list, write_shard_list
from varlit.data.formats.splits import is_remote
from varlit.errors import UserError


def rows_and_labels(tar: tar_stream.StreamedTar) -> list[tuple[int, int]]:
    return [(s.row, s.label) for s in tar.samples(tar.first + tar.count)]


def test_urls_and_commands_are_remote_and_paths_are_not() -> None:
    for root in ("http://h/x", "https://h/x", "s3://b/x", "gs://b/x", "pipe:cat x"):
        assert is_remote(root)
    for root in ("/x/train-{0..9}.tar", "hf:a/b", "x", "torchvision:cifar10"):
        assert not is_remote(root)


def test_a_folders_url_brings_all_splits(make_shards: Any, shard_server: Any) -> None:
    shard_server.folder = make_shards((2, 3), val=(1,))
    for root in (shard_server.url, shard_server.url + "/"):
        splits = open_remote(root)
        assert {split: len(shards) for split, shards in splits.items()} == {"train": 5, "val": 1}
        assert splits["train"].class_names == ("a", "b", "c")
        assert splits["train"].firsts.tolist() == [0, 2]
        assert [splits["train"].shard_of(row) for row in range(5)] == [0, 0, 1, 1, 1]
    assert rows_and_labels(splits["train"].tar(1)) == [(2, 2), (3, 0), (4, 1)]
    assert rows_and_labels(splits["val"].tar(0)) == [(0, 0)]


def test_a_pattern_brings_what_it_names(make_shards: Any, shard_server: Any) -> None:
    shard_server.folder = make_shards((2, 3, 4))
    found = open_remote(shard_server.url + "/train-{001..002}.tar")
    assert list(found) == ["train"]
    assert [shard.file for shard in found["train"].shards] == ["train-001.tar", "train-002.tar"]
    assert len(open_remote(shard_server.url + "/train-001.tar")["train"]) == 3
    with pytest.raises(UserError, match=r"2 of the 3 shards .* such as 'train-003\.tar'"):
        open_remote(shard_server.url + "/train-{002..004}.tar")


def test_a_command_may_bring_the_shards(make_shards: Any) -> None:
    folder = make_shards((2, 3))
    found = open_remote(f"pipe:cat '{folder}/train-{{000..001}}.tar' | cat")["train"]
    assert rows_and_labels(found.tar(0)) == [(0, 0), (1, 1)]
    with pytest.raises(UserError, match="names no shards"):
        open_remote("pipe:cat x")


def test_s3_goes_through_the_program_of_its_maker(
    make_shards: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, programs = make_shards((2,)), tmp_path / "programs"
    programs.mkdir()
    program = programs / "aws"  # aws s3 cp s3://bucket/NAME -
    program.write_text(f'#!/bin/sh\n[ "$1 $2 $4" = "s3 cp -" ] && exec cat "{folder}/${{3##*/}}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    found = open_remote("s3://bucket/a;b")["train"]
    assert rows_and_labels(found.tar(0)) == [(0, 0), (1, 1)]


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="program 'gsutil', which is not installed"):
        open_remote("gs://bucket/x")


def test_a_folder_without_a_list_says_how_to_make_one(
    shard_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_server.folder = tmp_path
    with pytest.raises(UserError, match=r"shards\.json' \(.*status 22\).*`varlit data index"):
        open_remote(shard_server.url)
    (tmp_path / "shards.json").write_text("<html>")
    with pytest.raises(UserError, match="is not valid JSON"):
        open_remote(shard_server.url)


def test_a_list_cannot_put_words_into_a_command(make_shards: Any, tmp_path: Path) -> None:
    folder = make_shards((2,))
    path = folder / "shards.json"
    path.write_text(path.read_text().replace("train-000.tar", f"x; touch {tmp_path}/done"))
    with pytest.raises(UserError, match="expected file names of letters"):
        open_remote(f"pipe:cat {folder}/train-{{000..001}}.tar")
    assert not (tmp_path / "done").exists()


def test_validation_needs_shards_or_a_root_of_its_own(make_shards: Any, shard_server: Any) -> None:
    shard_server.folder = make_shards((2, 3), val=(1,))
    pattern = shard_server.url + "/train-{000..001}.tar"
    assert list(open_streamed(pattern, "", 0)) == ["train"]
    with pytest.raises(UserError, match=r"data\.val_root to a folder or URL"):
        open_streamed(pattern, "", 0.05)
    both = open_streamed(pattern, shard_server.url, 0.05)
    assert (len(both["train"]), len(both["val"])) == (5, 1)
    listed = read_shard_list(shard_server.folder / "shards.json")
    write_shard_list(ShardList(("a", "b", "z"), listed.splits), shard_server.folder)
    mixed = open_streamed(shard_server.url, "", 0)["train"]
    assert mixed.digest() != both["train"].digest()


def test_other_classes_for_validation_are_refused(
    make_shards: Any, shard_server: Any, tmp_path: Path
) -> None:
    shard_server.folder = make_shards((2, 3))
    for name in ("cat", "dog"):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "0.png").write_bytes(b"x")
    with pytest.raises(UserError, match="other classes"):
        open_streamed(shard_server.url, str(tmp_path / "val"), 0.05)


@pytest.mark.parametrize("fault", ["absent", "cut", "drop"])
def test_a_shard_that_fails_once_is_read_again(
    make_shards: Any, shard_server: Any, fault: str
) -> None:
    shard_server.folder = make_shards((40,))
    tar = open_remote(shard_server.url)["train"].tar(0)
    shard_server.faults["train-000.tar"] = [fault]
    samples = list(tar.samples(40))
    assert [sample.row for sample in samples] == list(range(40)), "none twice, none lost"
    assert all(sample.fault is None for sample in samples)
    assert shard_server.asked.count("train-000.tar") == 2


def test_what_a_truncated_shard_lacks_is_lost_under_its_number(
    make_shards: Any, shard_server: Any
) -> None:
    shard_server.folder = make_shards((10, 4))
    path = shard_server.folder / "train-000.tar"
    path.write_bytes(path.read_bytes()[: 6 * 2048 + 1100])  # in the middle of image 6
    tar = open_remote(shard_server.url)["train"].tar(0)
    samples = list(tar.samples(10))
    assert [sample.row for sample in samples] == list(range(10))
    assert [sample.encoded is None for sample in samples] == [False] * 6 + [True] * 4
    fault = samples[-1].fault
    assert fault is not None
    assert (fault.name, fault.num_images) == (tar.url, 4)
    assert "after 6 of 10 images" in fault.reason
    assert shard_server.asked.count("train-000.tar") == 3


def test_numbers_are_those_of_the_index(make_shards: Any, shard_server: Any) -> None:
    folder = make_shards((1,))
    with tarfile.open(folder / "train-000.tar", "w") as tar:
        for name, content in [
            ("a.txt", "no image"),
            ("b.jpg", "no label"),
            ("c.JPEG", "third"),
            ("c.json", '{"label": 2}'),
            ("d.cls", "x"),
            ("d.png", "bad label"),
            ("e.v1.png", "suffix of its own"),
            ("e.cls", "0"),
            ("f.png", "last"),
            ("f.png", "twin"),
            ("f.cls", "1"),
            ("g.png", "of no class"),
            ("g.cls", "7"),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            source = folder / "content"
            source.write_text(content)
            with source.open("rb") as stream:
                tar.addfile(member, stream)
    from varlit.data.formats.tar_index import index_tar

    index = index_tar(folder / "train-000.tar")
    shard_server.folder = folder
    tar = tar_stream.StreamedTar(f"{shard_server.url}/train-000.tar", 0, len(index), 3)
    samples = list(tar.samples(len(index)))
    assert [sample.where.rpartition("/")[2] for sample in samples] == ["c.jpeg", "f.png", "g.png"]
    assert [name.lower() for name in index.names.tolist()] == [b"c.jpeg", b"f.png", b"g.png"]
    assert [sample.encoded for sample in samples] == [b"third", b"last", None]
    assert [sample.label for sample in samples] == [2, 1, 0]
    assert "label 7, but 3 classes" in samples[2].fault.reason  # type: ignore[union-attr]


def test_no_process_is_forked_while_a_program_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was would keep the pipe open, and the reader waiting for its end."""
    starting, started = threading.Event(), threading.Event()
    library = importlib.import_module("webdataset.gopen")
    begin = library.Pipe.__init__

    def slow_start(*args: Any, **settings: Any) -> None:
        starting.set()
        time.sleep(0.2)
        begin(*args, **settings)
        started.set()

    monkeypatch.setattr(library.Pipe, "__init__", slow_start)
    with ThreadPoolExecutor(1) as pool:
        content = pool.submit(tar_stream.read_text, "pipe:printf content")
        starting.wait()
        child = os.fork()
        if child == 0:
            os._exit(0 if started.is_set() else 1)
        assert content.result() == "content"
    assert os.waitpid(child, 0)[1] == 0
