"""`varlit doctor -c`: the recipe is found, its needs are counted, and a lack is an exit code."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from varlit.cli import main as command_line
from varlit.cli.doctor import machine
from varlit.cli.doctor import recipe as doctor_recipe
from varlit.cli.doctor.checks import GIB
from varlit.cli.doctor.needs import count_checkpoints, estimate
from varlit.cli.doctor.recipe import compare, count_devices, ram_needed
from varlit.cli.doctor.settings import resolve
from varlit.cli.running.devices import Placement
from varlit.errors import UserError

GPU = Placement("gpu", 2, "bf16-mixed")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMAGENET_DIR", raising=False)


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that lacks nothing."""
    monkeypatch.setattr(machine, "free_bytes", lambda place: 1000 * GIB)
    monkeypatch.setattr(machine, "free_files", lambda place: None)
    monkeypatch.setattr(machine, "read_limits", lambda: machine.Limits(None, None))
    monkeypatch.setattr(machine, "available_memory", lambda limits: 1000.0 * GIB)
    monkeypatch.setattr(machine, "allowed_cores", lambda limits: 64.0)
    monkeypatch.setattr(machine, "open_files_limit", lambda: (10**6, 10**6))
    monkeypatch.setattr(machine, "cards", lambda: [machine.Card("H100", 75 * GIB)] * 2)
    monkeypatch.setattr(machine, "has_nccl", lambda: True)
    monkeypatch.setattr(machine, "pairs_apart", lambda num_gpus: [])
    monkeypatch.setattr(doctor_recipe.os, "cpu_count", lambda: 64)


def needs_of(given: str, *words: str, num_devices: int = 1) -> Any:
    found = resolve(given, list(words))
    return estimate(found.stage, found.settings, num_devices)


@pytest.mark.slow
def test_checkpoints_are_counted_by_the_policy() -> None:
    def number(**policy: Any) -> int:
        return count_checkpoints({"checkpoint": policy}, 10_000)

    assert number() == 2 + 1, "last, the one before, and the one being written"
    assert number(keep_last=4) == 5
    assert number(keep_best="val/loss") == 4
    assert number(keep_every_n_steps=1000) == 13


@pytest.mark.slow
def test_d16_takes_what_twelve_bytes_a_weight_take() -> None:
    needs = needs_of("d16")  # without an average: weights and AdamW's moments
    weights = 310_283_520
    assert needs.disk["checkpoints"] == pytest.approx(3 * 12 * weights, rel=0.02)
    assert needs.disk["weights"] == pytest.approx(4 * weights, rel=0.02)
    assert needs.disk["token cache"] == 0
    assert needs.shared_bytes == 0, "no workers"
    kept = needs_of("d16", "--checkpoint.keep_every_n_steps", "10000")
    more = (kept.disk["checkpoints"] - needs.disk["checkpoints"]) / (12 * weights)
    assert more == pytest.approx(1668 * 200 // 10_000, rel=0.02)


@pytest.mark.slow
def test_muon_has_one_moment_and_lora_few() -> None:
    plain = needs_of("d16").disk["checkpoints"]
    assert needs_of("d16", "--model.optim.optimizer", "muon").disk["checkpoints"] < 0.85 * plain
    assert needs_of("d16", "--model.lora.rank", "8").disk["checkpoints"] < 0.65 * plain


@pytest.mark.slow
def test_the_tokenizer_takes_the_cache_too() -> None:
    needs = needs_of("imagenet256")
    one = needs_of("imagenet256", "--cache.num_crops", "1")
    crop = 1_281_167 * 680 * 2
    assert needs.disk["token cache"] - one.disk["token cache"] == 9 * crop
    assert one.disk["token cache"] == pytest.approx(crop + 109e6 * 4, rel=0.01)
    # 12 workers with two batches each of 768 images of 3 x 256 x 256 in fp32.
    assert needs.shared_bytes == 12 * 2 * 768 * 3 * 256**2 * 4


@pytest.mark.slow
def test_images_of_a_folder_are_counted(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"photos/{name}/{i}.png")
    found = resolve("tokenizer/folder", ["--data.root", "photos"])
    cache = estimate(found.stage, found.settings, 1).disk["token cache"]
    scales = found.settings["model"]["tokenizer"]["scales"]
    one = needs_of("tokenizer/folder", "--cache.num_crops", "1").disk["token cache"]
    assert cache - one == 6 * sum(side**2 for side in scales) * 2 * 10


@pytest.mark.slow
def test_devices_parts_and_shards_share_a_step() -> None:
    whole, eighth = needs_of("d16").memory, needs_of("d16", num_devices=8).memory
    assert (whole.num_images, eighth.num_images) == (768, 96)
    assert eighth.states == whole.states
    parts = needs_of("d16", "--trainer.accumulate_grad_batches", "4", num_devices=8).memory
    assert (parts.num_images, parts.num_parts) == (24, 4)
    sharded = needs_of("d16", "--trainer", "fsdp", num_devices=8)
    assert sharded.memory.states == pytest.approx(whole.states / 8)
    assert sharded.is_sharded


@pytest.mark.slow
def test_on_a_cpu_the_network_lies_in_the_ram() -> None:
    needs = needs_of("d16")
    assert ram_needed(needs, True).needed > needs.memory.needed
    assert ram_needed(needs, False).needed < 2 * GIB


@pytest.mark.slow
def test_devices_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cards", lambda: [machine.Card("x", 1)] * 3)
    counts = [count_devices(Placement("gpu", d, "")) for d in (2, "4", [0, 1], -1, "auto")]
    assert counts == [2, 4, 2, 3, 1]


def verdicts(findings: Any) -> dict[str, str]:
    return {subject: verdict for verdict, subject, _ in findings}


@pytest.mark.usefixtures("roomy")
@pytest.mark.slow
def test_a_machine_that_lacks_nothing_is_ok(tmp_path: Path) -> None:
    # d16 wants 768 images on two cards: more than fit at once, unless in parts.
    needs = needs_of("d16", "--trainer.accumulate_grad_batches", "16", num_devices=2)
    found = verdicts(compare(needs, GPU, tmp_path / "runs/var-d16"))
    assert set(found.values()) == {"ok"}, found
    assert set(found) == {
        *("writing", "room", "files", "memory", "gpu memory", "peers", "cores", "workers"),
        *("shared", "open files", "clock"),
    }


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize(
    ("name", "value", "subject"),
    [
        ("free_bytes", lambda place: GIB, "room"),
        ("free_files", lambda place: 7, "files"),
        ("available_memory", lambda limits: GIB, "memory"),
        ("cards", lambda: [machine.Card("a", 75 * GIB), machine.Card("b", GIB)], "gpu memory"),
        ("has_nccl", lambda: False, "peers"),
        ("allowed_cores", lambda limits: 1.0, "cores"),
        ("open_files_limit", lambda: (64, 64), "open files"),
        ("try_writing", lambda place: machine.Writing(place, "is full", None), "writing"),
    ],
)
@pytest.mark.slow
def test_each_lack_is_found(
    name: str, value: Any, subject: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, name, value)
    needs = needs_of("d16", "--trainer.accumulate_grad_batches", "16", num_devices=2)
    assert verdicts(compare(needs, GPU, tmp_path))[subject] == "fix"


@pytest.mark.usefixtures("roomy")
@pytest.mark.slow
def test_workers_and_their_batches_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "allowed_cores", lambda limits: 4.0)
    monkeypatch.setattr(machine, "free_bytes", lambda place: 64 * 2**20)
    needs = needs_of("imagenet256", num_devices=2)
    found = verdicts(compare(needs, GPU, tmp_path))
    assert (found["workers"], found["shared"]) == ("fix", "fix")


@pytest.mark.usefixtures("roomy")
@pytest.mark.slow
def test_a_run_that_would_go_on_and_a_wrong_clock_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    clock = SimpleNamespace(now=lambda zone: SimpleNamespace(year=1970))
    monkeypatch.setattr(doctor_recipe, "datetime", clock)
    found = verdicts(compare(needs_of("var/digits"), Placement("cpu", 1, ""), tmp_path))
    assert (found["writing"], found["clock"]) == ("warn", "fix")
    assert "gpu memory" not in found


@pytest.mark.slow
def test_the_exit_code_is_that_of_a_fix(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["doctor", "-c", "tokenizer/digits", "--gpus", "0", "--data.num_workers", "0"]
    assert command_line.main(words) == 0
    told = capsys.readouterr().out
    assert re.search(r"^ok +room +needs .* free in ", told, re.MULTILINE)
    assert command_line.main(["doctor", "-c", "var/digits", "--gpus", "0"]) == 1
    assert "fix   cache        no token cache" in capsys.readouterr().out


@pytest.mark.usefixtures("roomy")
@pytest.mark.slow
def test_checkpoints_elsewhere_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Path] = []

    def try_writing(folder: Path) -> machine.Writing:
        tried.append(folder)
        return machine.Writing(folder, "is full" if folder == Path("/elsewhere") else "", 0.0)

    free = {Path("/elsewhere"): GIB}
    monkeypatch.setattr(machine, "try_writing", try_writing)
    monkeypatch.setattr(machine, "free_bytes", lambda place: free.get(place, 1000 * GIB))
    monkeypatch.setattr(machine, "is_other_disk", lambda first, second: True)
    found = list(compare(needs_of("d16"), GPU, tmp_path, Path("/elsewhere")))
    [_, (_, _, whole), *_] = compare(needs_of("d16"), GPU, tmp_path)
    assert tried == [tmp_path, Path("/elsewhere"), tmp_path]
    assert [verdict for verdict, subject, _ in found if subject == "writing"] == ["ok", "fix"]
    rooms = [(verdict, text) for verdict, subject, text in found if subject == "room"]
    assert [verdict for verdict, _ in rooms] == ["fix", "ok"]
    assert "--checkpoint.dirpath" in rooms[0][1]
    assert "checkpoints " in whole
    assert "checkpoints " not in rooms[1][1], "counted once, on the disk where they go"


@pytest.mark.slow
def test_on_one_disk_checkpoints_elsewhere_share_its_room(tmp_path: Path) -> None:
    found = list(compare(needs_of("var/digits"), GPU, tmp_path / "run", tmp_path / "apart"))
    [room] = [text for _, subject, text in found if subject == "room"]
    assert "checkpoints" in room


@pytest.mark.slow
def test_the_folder_of_checkpoints_is_that_of_the_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["doctor", "-c", "tokenizer/digits", "--gpus", "0"]
    assert command_line.main([*words, "--checkpoint.dirpath", "/proc/nope"]) == 1
    told = capsys.readouterr().out
    assert re.search(r"^fix +writing +/proc: .*--checkpoint\.dirpath", told, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["-c", "d61"], "did you mean `d16`"),
        (["--model.var.depth", "3"], "unrecognized"),
        (["--pare"], "did you mean `--pair`"),
    ],
)
@pytest.mark.slow
def test_mistakes_are_answered(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["doctor", *words]) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.slow
def test_more_gpus_than_there_are_is_to_mend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any) -> Placement:
        raise UserError("--gpus 8, but this machine has 2; try --gpus 2, or --gpus auto")

    monkeypatch.setattr(doctor_recipe, "place", refuse)
    assert command_line.main(["doctor", "-c", "d16", "--gpus", "8"]) == 1
    assert "fix   devices      --gpus 8, but this machine has 2" in capsys.readouterr().out


@pytest.mark.slow
def test_asked_for_gpus_where_there_are_none_is_a_warning() -> None:
    placement = Placement("cpu", 1, "32-true", "no GPU found")
    assert doctor_recipe._told(placement, "8")[0] == "warn"
    assert doctor_recipe._told(placement, "auto")[0] == "ok"
