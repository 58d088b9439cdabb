"""`varlit doctor --data`: all images decoded, and whether a run would bear what is bad."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from varlit.cli import main as command_line
from varlit.cli.doctor import data as doctor_data
from varlit.cli.doctor import main as doctor

Told = list[tuple[str, str, str]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for split, count in (("train", 16), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                values = np.full((30 + i, 40, 3), 5 * i + label, dtype=np.uint8)
                Image.fromarray(values).save(folder / f"{split}{i:02d}.png")
    return tmp_path / "photos"


def told(data: Path | str, *flags: str) -> Told:
    args = doctor.build_parser().parse_args(["--data", str(data), "--num_workers", "0", *flags])
    return list(doctor_data.check(args))


def of(findings: Told, subject: str) -> list[str]:
    return [f"{verdict} {text}" for verdict, found, text in findings if found == subject]


def test_a_sound_set_is_ok_throughout(photos: Path) -> None:
    findings = told(photos, "--image_size", "30", "--duplicates")
    assert {verdict for verdict, _, _ in findings} <= {"ok", "warn"}
    assert of(findings, "data") == [
        f"ok 32 images in 2 classes in {photos}/train, 4 more to validate on"
    ]
    assert of(findings, "sizes") == ["ok shorter sides 30 to 40 px, median 36"]
    assert of(findings, "images") == ["ok all 36 that were looked at can be used"]
    assert of(findings, "duplicates") == [
        "warn 4 images in both the training and the validation set"
    ]


def test_each_kind_of_trouble_is_told_with_names(photos: Path, tmp_path: Path) -> None:
    cat, dog = photos / "train" / "cat", photos / "train" / "dog"
    (cat / "train03.png").write_bytes(b"no image")
    os.mkfifo(dog / "pipe.png")
    Image.new("CMYK", (40, 40)).save(cat / "print.jpg")
    Image.new("RGB", (12, 500)).save(dog / "thread.png")
    shutil.copy(dog / "train05.png", dog / "train05 again.png")
    findings = told(
        photos, "--image_size", "20", "--duplicates", "--list", str(tmp_path / "bad.txt")
    )
    [unreadable] = of(findings, "unreadable")
    assert unreadable.startswith(f"warn 2 images: {cat}/train03.png (not an image that Pillow")
    assert f"{dog}/pipe.png (a pipe or device" in unreadable
    [small] = of(findings, "small")
    assert small.startswith("warn 1 image (skipped, or enlarged with data.small_images upscale)")
    assert f"{dog}/thread.png (shorter side 12 px" in small
    assert of(findings, "cmyk") == [f"ok 1 image CMYK: converted to RGB; such as {cat}/print.jpg"]
    assert "warn 1 image equal to another of their set" in of(findings, "duplicates")
    [verdict] = of(findings, "images")
    assert verdict.startswith("warn 3 of 40 (7.50%) cannot be used: a run skips them, and bears 10")
    assert of(findings, "list") == [f"ok 3 names in {tmp_path}/bad.txt"]
    listed = (tmp_path / "bad.txt").read_text(encoding="utf-8").splitlines()
    assert [Path(line.split("\t")[0]).name for line in listed] == [
        *("train03.png", "pipe.png", "thread.png")
    ]


def test_a_set_that_would_stop_a_run_is_broken(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["doctor", "--data", str(photos)]) == 0
    for i in range(11):
        (photos / "train" / "cat" / f"train{i:02d}.png").write_bytes(b"")
    capsys.readouterr()
    assert command_line.main(["doctor", "--data", str(photos)]) == 1
    lines = capsys.readouterr().out.splitlines()
    [fix] = [line for line in lines if line.startswith("fix")]
    assert "11 of 36 (30.56%) cannot be used, and a run bears 10 (data.max_bad_share 0.001)" in fix
    assert lines[-1] == "1 to mend, marked `fix`."


def test_a_quick_look_takes_some_of_each_split(photos: Path) -> None:
    (photos / "train" / "cat" / "train01.png").write_bytes(b"")
    findings = told(photos, "--quick")
    assert of(findings, "data")[-1] == "warn looked at 20 of 36 images only"
    assert of(findings, "images") == ["ok all 20 that were looked at can be used"]


def test_classes_of_few_images_are_named(photos: Path) -> None:
    for name, count in (("ant", 0), ("bee", 3)):
        (photos / "train" / name).mkdir()
        for i in range(count):
            Image.new("RGB", (40, 40)).save(photos / "train" / name / f"{i}.png")
    findings = told(photos)
    assert of(findings, "classes") == ["warn 2 classes have less than 10 images: ant (0), bee (3)"]
    assert any("1 class folder(s) without an image" in text for text in of(findings, "data"))


def test_what_cannot_be_opened_is_a_finding(tmp_path: Path) -> None:
    [(verdict, _, text)] = told(tmp_path / "nowhere")
    assert (verdict, "does not exist" in text) == ("fix", True)
    [(verdict, _, text)] = told("https://example.org/train-{0..3}.tar")
    assert (verdict, "streamed" in text) == ("warn", True)


def test_where_imports_fail_the_doctor_still_speaks(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "varlit.cli.doctor.data", None)
    monkeypatch.delattr("varlit.cli.doctor.data", raising=False)
    args = doctor.build_parser().parse_args(["--data", str(photos)])
    [(verdict, subject, text)] = doctor.check_given(args)
    assert (verdict, subject) == ("fix", "data")
    assert "make setup" in text


def test_ctrl_c_tells_what_was_found_so_far(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = doctor_data.inspect_images
    monkeypatch.setattr(doctor_data, "inspect_images", lambda *args: cut_short(original, *args))
    args = doctor.build_parser().parse_args(["--data", str(photos)])
    findings: Told = []
    with pytest.raises(KeyboardInterrupt):
        findings.extend(doctor_data.check(args))
    assert "warn looked at 5 of 36 images only" in of(findings, "data")


def cut_short(original: Any, images: Any, rows: Any, *_: Any) -> Any:
    yield from original(images, rows[:5], 0)
    raise KeyboardInterrupt


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_and_no_traceback(tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "cat"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "0.png")
    for i in range(1, 4000):
        os.link(folder / "0.png", folder / f"{i}.png")
    command = [sys.executable, "-m", "varlit", "doctor", "--num_workers", "2", "--data"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "photos")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background lets them, and us, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("checking"), "so processes are at work"
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "of 4,000 images only" in out
    assert "Traceback" not in err
    last_s = time.monotonic() + 10  # the tracker of shared memory goes when it hears no more of us
    while _running(process.pid) and time.monotonic() < last_s:
        time.sleep(0.1)
    assert _running(process.pid) == []


def _running(group: int) -> list[str]:
    """Commands of a process group, without the dead that nobody has buried."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, owner = path.read_text().rpartition(")")[2].split()[:3]
            if int(owner) == group and state != "Z":
                found.append(path.with_name("cmdline").read_text())
        except OSError:
            continue
    return found
