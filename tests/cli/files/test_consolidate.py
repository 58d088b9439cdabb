"""`varlit consolidate`: finding the checkpoint, and putting parts together whole or not at all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from varlit.cli import main as command_line
from varlit.training import sealing, shard_files

WHOLE = torch.arange(20.0).reshape(5, 4)


def index(*names: str) -> dict[str, Any]:
    return {
        "state_dict": {"plain": torch.ones(2)},
        "optimizer_states": [{"state": {3: {"step": torch.tensor(7.0)}}, "param_groups": [{}]}],
        "hyper_parameters": {"lr": 0.1},
        "shards": list(names),
    }


def rows(part: Tensor) -> dict[shard_files.Place, Tensor]:
    places = [("state_dict", "weight"), ("optimizer_states", 0, "state", 3, "exp_avg")]
    return dict.fromkeys(places, part)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose checkpoint two processes wrote, 3 rows and 2."""
    monkeypatch.chdir(tmp_path)
    checkpoints = Path("runs/big/checkpoints")
    (checkpoints / "last.parts").mkdir(parents=True)
    names = ("0000007-00000-of-00002.pt", "0000007-00001-of-00002.pt")
    for name, part in zip(names, WHOLE.split(3), strict=True):
        torch.save(rows(part), checkpoints / "last.parts" / name)
    torch.save(index(*names), checkpoints / "last.ckpt")
    return checkpoints


@pytest.mark.parametrize("named", ["big", "runs/big", "runs/big/checkpoints/last.ckpt"])
def test_the_parts_become_one_plain_file(
    run: Path, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["consolidate", named]) == 0
    found = torch.load(run / "last.ckpt", weights_only=True)
    assert torch.equal(found["state_dict"]["weight"], WHOLE)
    assert torch.equal(found["state_dict"]["plain"], torch.ones(2))
    assert torch.equal(found["optimizer_states"][0]["state"][3]["exp_avg"], WHOLE)
    assert found["optimizer_states"][0]["state"][3]["step"] == 7
    assert not shard_files.in_parts(found)
    assert [p.name for p in run.iterdir()] == ["last.ckpt"]
    assert "one file" in capsys.readouterr().out
    assert command_line.main(["consolidate", named]) == 0
    assert "nothing was done" in capsys.readouterr().out


def test_a_missing_or_damaged_part_is_named_and_nothing_changes(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = run / "last.parts" / "0000007-00001-of-00002.pt"
    before = (run / "last.ckpt").read_bytes()
    for content, word in ((b"no archive", "damaged"), (None, "missing")):
        part.unlink() if content is None else part.write_bytes(content)
        assert command_line.main(["consolidate", "big"]) == 2
        said = capsys.readouterr().err
        assert part.name in said
        assert word in said
        assert (run / "last.ckpt").read_bytes() == before


def test_a_part_that_would_run_code_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({("state_dict", "weight"): Path("/")}, run / "last.parts/0000007-00000-of-00002.pt")
    assert command_line.main(["consolidate", "big"]) == 2
    assert "damaged" in capsys.readouterr().err


def test_a_save_that_breaks_off_leaves_the_checkpoint_before_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing.os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command_line.main(["consolidate", "big"])
    assert sorted(p.name for p in run.iterdir()) == ["last.ckpt", "last.parts"]
    assert len(list((run / "last.parts").iterdir())) == 2


def test_a_run_without_the_checkpoint_names_those_it_has(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["consolidate", "big", "--checkpoint", "0000100"]) == 2
    assert "--checkpoint one of: last" in capsys.readouterr().err
    assert command_line.main(["consolidate", "small"]) == 2
    assert "is it the name of a run?" in capsys.readouterr().err


def test_a_new_save_removes_the_parts_of_the_one_before(run: Path) -> None:
    shard_files.write_parts(index(), run / "last.ckpt", rank=0, size=1, barrier=lambda: None)
    assert [p.name for p in (run / "last.parts").iterdir()] == ["0000000-00000-of-00001.pt"]
