"""`varlit doctor`: findings and remedies, also where things are broken."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from varlit.cli import main as command_line
from varlit.cli.doctor import main as doctor


def verdicts(findings: object) -> dict[str, str]:
    return {subject: verdict for verdict, subject, _ in findings}  # type: ignore[attr-defined]


def test_this_machine_is_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.split()[0] in {"ok", "warn"} for line in lines)
    assert any("fits torch" in line for line in lines)


def test_torchvision_for_another_torch_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert command_line.main(["doctor", "--pair"]) == 1
    told = capsys.readouterr().out
    assert "built for another torch" in told
    assert "rm -rf .venv && make setup" in told


def test_missing_packages_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    assert ("fix", "packages", "missing: no-such-package; make setup") in doctor.check_versions()


def test_malicious_versions_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.6.3")
    assert verdicts(doctor.check_versions())["lightning"] == "fix"


def test_imagenet_is_probed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMAGENET_DIR", str(tmp_path))
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / name / "a.png")
    (tmp_path / "dog" / "a.png").write_bytes(b"no image")
    texts = [f"{verdict} {text}" for verdict, _, text in doctor.check_imagenet()]
    assert texts[0].startswith("ok 2 classes")
    assert any(t.startswith("warn") and "dog/a.png cannot be read" in t for t in texts)
    assert texts[-1] == "ok 1 images decoded, shorter sides 30 to 30 px"


def test_imagenet_may_be_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMAGENET_DIR", str(tmp_path / "nowhere"))
    ((verdict, _, text),) = doctor.check_imagenet()
    assert verdict == "warn"
    assert "CONF=digits" in text
    monkeypatch.setenv("IMAGENET_DIR", str(tmp_path))
    assert verdicts(doctor.check_imagenet()) == {"imagenet": "warn"}


def test_weights_are_looked_for_and_not_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "inception.pth"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("VARLIT_INCEPTION", str(file))
    monkeypatch.delenv("VARLIT_LPIPS_VGG", raising=False)
    assert verdicts(doctor.check_weights()) == {"inception": "fix", "vgg16": "warn"}
    file.touch()
    assert verdicts(doctor.check_weights())["inception"] == "ok"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = doctor.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    assert verdicts(doctor.check_disk(tmp_path / "runs")) == {"disk": "fix"}
