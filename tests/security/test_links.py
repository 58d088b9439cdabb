"""Links in a run's folder from elsewhere: the files that they lead to stay as they are."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from varlit.cli.running.lock import RunLock
from varlit.cli.running.processes import SharedFate
from varlit.data.bad_files import BadFile, BadFiles
from varlit.disks import append_line, whole_file
from varlit.errors import UserError
from varlit.training.evaluation_samples import SampleFile
from varlit.training.sealing import flaw, write_sealed


@pytest.fixture
def precious(tmp_path: Path) -> Iterator[Path]:
    """A file outside of the run; each test ends by looking whether it is as it was."""
    file = tmp_path / "precious.npy"
    np.save(file, np.zeros((2, 4, 4, 3), np.uint8))
    before = file.read_bytes()
    yield file
    assert file.read_bytes() == before, "a link has led out of the run's folder"


@pytest.fixture
def run(tmp_path: Path, precious: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def lock(run: Path) -> None:
    with RunLock(run):
        pass


def add_numbers(run: Path) -> None:
    append_line(run / "metrics.jsonl", "{}\n")


def list_bad_file(run: Path) -> None:
    BadFiles(run, num_images=100, max_share=0.5).add(BadFile("a.png", "broken"))


def write_image(run: Path) -> None:
    file = SampleFile(run, run / "out.npz", count=2, side_px=4)
    file.write(torch.tensor([1]), torch.ones(1, 3, 4, 4, dtype=torch.uint8))


IN_PLACE: dict[str, Callable[[Path], None]] = {
    ".lock": lock,
    "metrics.jsonl": add_numbers,
    "bad_files.txt": list_bad_file,
    "samples.npy": write_image,
}


@pytest.mark.filterwarnings("ignore:skipped the bad image")
@pytest.mark.parametrize("name", IN_PLACE)
def test_a_link_in_the_place_of_a_file_that_is_changed_is_refused(
    name: str, run: Path, precious: Path
) -> None:
    (run / name).symlink_to(precious)
    with pytest.raises(UserError, match=f"{name} is a link, .*; remove the link") as refusal:
        IN_PLACE[name](run)
    assert "\n" not in str(refusal.value)


def test_a_link_to_nowhere_makes_no_file_there(run: Path, tmp_path: Path) -> None:
    (run / ".lock").symlink_to(tmp_path / "new")
    with pytest.raises(UserError, match="is a link"):
        lock(run)
    assert not (tmp_path / "new").exists()


def test_a_run_whose_folder_is_a_link_is_worked_in(run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(run)
    lock(tmp_path / "elsewhere")
    add_numbers(tmp_path / "elsewhere")
    assert (run / "metrics.jsonl").read_text() == "{}\n"


def write_text(path: Path) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text("new")


def write_checkpoint(path: Path) -> None:
    write_sealed({"step": 1}, path)
    assert not flaw(path)


@pytest.mark.parametrize("write", [write_text, write_checkpoint])
@pytest.mark.parametrize("left_by", ["a stranger", "a killed process"])
def test_what_lies_under_a_temporary_name_is_replaced_and_not_followed(
    write: Callable[[Path], None], left_by: str, run: Path, precious: Path
) -> None:
    unfinished = run / f"file.tmp{os.getpid()}"
    if left_by == "a stranger":
        unfinished.symlink_to(precious)
    else:
        unfinished.write_bytes(b"half" * 9999)
    write(run / "file")
    assert [path.name for path in run.iterdir()] == ["file"]
    assert not (run / "file").is_symlink()
    assert (run / "file").stat().st_size < 9999


def test_a_link_under_the_temporary_name_of_samples_is_not_followed(
    run: Path, precious: Path
) -> None:
    file = SampleFile(run, run / "out.npz", count=2, side_px=4)
    file.begin()
    (run / f".out.npz.{os.getpid()}").symlink_to(precious)
    file.finish()
    assert not (run / "out.npz").is_symlink()


def test_links_in_the_place_of_a_traceback_are_not_followed(run: Path, precious: Path) -> None:
    (run / "errors").mkdir()
    for name in ("rank-0.tmp", "rank-0.txt", f"rank-0.txt.tmp{os.getpid()}"):
        (run / "errors" / name).symlink_to(precious)
    kept = SharedFate(1, 0, run, list)._keep(ValueError("broken"))
    assert "broken" in kept.read_text()


def test_a_link_in_the_place_of_a_whole_file_is_replaced(run: Path, precious: Path) -> None:
    for write in (write_text, write_checkpoint):
        (run / "file").unlink(missing_ok=True)
        (run / "file").symlink_to(precious)
        write(run / "file")
        assert not (run / "file").is_symlink()
