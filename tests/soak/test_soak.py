"""Trainings that are killed where it hurts, and everywhere else, end at the same bits."""

import shutil
import signal
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.soak.command import as_table, soak
from tests.soak.compare import differences, tree
from tests.soak.killer import Kill, Moments, Point, Starter, run_through
from tests.soak.pipeline import STAGES, Size, prepare, words_of

KILL, TERM, INT, USR1 = signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1
CLASSES = {
    "tokenizer": "varlit.training.tokenizer:TokenizerModule",
    "var": "varlit.training.var:VARModule",
}
NOBODY = "tmp999999999"
FSYNC = "varlit.training.sealing:os.fsync"

# An epoch has 9 steps, there are 3; saves at 4, 8, 12 and so on. Each start counts its own calls.
IN_AN_EPOCH = (
    ("training_step", 7, KILL),  # step 7; goes on from 4
    ("training_step", 7, TERM),  # step 11 is saved, between two steps that are logged
    ("training_step", 4, INT),  # step 15, which is
    (FSYNC, 2, KILL),  # amid a save
    ("training_step", 2, USR1),
)
AT_ITS_END = (
    ("training_step", 9, TERM),  # saved before the validation
    ("validation_step", 2, KILL),  # the one that is made up for
    ("validation_step", 2, TERM),
    ("training_step", 5, KILL),  # step 14 of the next epoch
    ("training_step", 6, TERM),  # step 18, from 12
    ("training_step", 1, KILL),
    ("training_step", 9, TERM),  # step 27, the last
    ("validation_step", 1, KILL),  # what the run still owes
)
IN_A_VALIDATION = (
    ("validation_step", 2, TERM),  # after step 9
    ("validation_step", 4, KILL),  # after step 18, for one of them was owed before
    ("validation_step", 2, INT),
    ("validation_step", 1, USR1),
)
IN_AN_EVALUATION = (
    ("varlit.training.var_evaluation:VARTest.run", 1, KILL),  # step 11
    # Its second batch of two: the reference was looked at before, and kept.
    ("varlit.metrics.image_features:ImageFeatures.update", 2, KILL),
    ("varlit.metrics.image_features:ImageFeatures.update", 2, TERM),
    ("varlit.training.evaluation:measure", 1, KILL),  # step 22, all drawn
    ("varlit.training.var_evaluation:VARTest.run", 1, TERM),
)
DRAWING = (
    ("varlit.training.evaluation_saved:SavedFeatures.load_into", 1, KILL),
    ("varlit.training.evaluation_saved:SavedFeatures.save", 3, KILL),
    (FSYNC, 4, KILL),
    ("varlit.training.evaluation_saved:SavedFeatures.save", 2, INT),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("soak")


@pytest.fixture(scope="module")
def starter(place: Path) -> Iterator[Starter]:
    with Starter(place / "cache") as starter:
        yield starter


@pytest.fixture(scope="module")
def whole(place: Path, starter: Starter) -> Path:
    """The pipeline, undisturbed."""
    prepare(place / "whole", Size())
    run_through(starter, STAGES, place / "whole")
    return place / "whole"


def points(stage: str, told: tuple[tuple[str, int, int], ...]) -> tuple[Point, ...]:
    return tuple(
        Point(name if ":" in name else f"{CLASSES[stage]}.{name}", call, number)
        for name, call, number in told
    )


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "told"),
    [
        *((stage, told) for stage in (0, 2) for told in (IN_AN_EPOCH, AT_ITS_END, IN_A_VALIDATION)),
        (2, IN_AN_EVALUATION),
        (3, DRAWING),
    ],
    ids=[
        *("tokenizer-epoch", "tokenizer-end", "tokenizer-validation"),
        *("var-epoch", "var-end", "var-validation", "var-fid", "evaluate"),
    ],
)
def test_killed_at_a_point_the_same_command_ends_at_the_same_bits(
    number: int,
    told: tuple[tuple[str, int, int], ...],
    place: Path,
    whole: Path,
    starter: Starter,
    request: pytest.FixtureRequest,
) -> None:
    stage, folder = STAGES[number], place / request.node.callspec.id
    runs = ["runs/tokenizer-soak", "runs/var-soak"][: number // 2 + 1]
    prepare(folder, Size())
    for run in runs[: (number + 1) // 2]:
        shutil.copytree(whole / run, folder / run)
    if number == 3:
        (folder / runs[1] / "metrics.json").unlink()
        shutil.rmtree(folder / runs[1] / "evaluation", ignore_errors=True)
    if stage.words[1:2] == ("fit",):
        # Of processes that are gone: of no number that can be one's.
        for left in (f"model.safetensors.{NOBODY}", f"best-psnr/config.json.{NOBODY}"):
            (folder / runs[-1] / left).parent.mkdir(parents=True, exist_ok=True)
            (folder / runs[-1] / left).touch()
    armed = points(stage.words[0], told)
    starts = run_through(starter, (stage,), folder, points=armed)
    assert starts == len(armed) + (armed[-1].number != USR1)
    # The first stage alone has no token cache yet.
    later = [] if number else ["missing: tokens", "missing: predict.yaml"]
    found = differences(whole / runs[-1], folder / runs[-1])
    found = [line for line in found if not line.startswith((*later, "missing: evaluation"))]
    found = [line for line in found if number == 3 or line != "missing: metrics.json"]
    assert found == []
    assert starter.orphans() == []


@pytest.mark.soak
@pytest.mark.slow
def test_twenty_kills_at_random_moments_leave_the_same_bits(tmp_path: Path) -> None:
    args = Namespace(seed=0, gap=3.0, kills=20)
    found = soak(tmp_path, Size(), args, (KILL,))
    assert len(found.kills) == 20
    assert [line for done in found.rounds for line in done.wrong] == []
    assert found.num_files > 50
    assert "| all | 20 | 0 | 0 | 0 |" in as_table(found)


def test_the_comparison_sees_a_single_bit_and_a_single_step(tmp_path: Path) -> None:
    tensor = torch.ones(3)
    other = tensor.clone()
    other.view(torch.int32)[1] += 1
    assert tree("", {"a": [tensor, 1]}, {"a": [tensor.clone(), 1]}) == []
    assert tree("", {"a": [tensor]}, {"a": [other]}) == ["a.0 is another tensor"]
    assert tree("", {"a": {"b": 1}}, {"a": {}}) == ["a.b is (not there), not 1"]
    for name in ("whole", "found"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "events.out.tfevents.1.host").write_text(name)
    lines = '{"step": 1, "loss": 2.0, "speed/images_per_s": 3}\n'
    (tmp_path / "whole/metrics.jsonl").write_text(lines)
    twice = '{"step": 1, "loss": 7.0}\n' + lines.replace("3", "4")
    (tmp_path / "found/metrics.jsonl").write_text(twice)
    assert differences(tmp_path / "whole", tmp_path / "found") == []
    (tmp_path / "found/metrics.jsonl").write_text(twice.replace("1", "2"))
    (tmp_path / "found/a.ckpt.tmp123").touch()
    told = differences(tmp_path / "whole", tmp_path / "found")
    assert told[0] == "left over: a.ckpt.tmp123"
    assert told[1] == "metrics.jsonl: 1 loss is (not there), not 2.0"


def test_moments_are_those_of_the_seed_and_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr("os.kill", lambda *told: sent.append(told))
    runs = []
    for _ in range(2):
        moments, waited = Moments(seed=3, mean_s=2.0, most=200), []
        while not moments.is_over:
            waited.append(moments.left_s)
            moments.spend(moments.left_s)
            moments.fire("var fit", 7, 1.0)
        runs.append((waited, moments.sent))
    assert runs[0] == runs[1]
    assert max(runs[0][0]) <= 4
    assert 1.5 < sum(runs[0][0]) / 200 < 2.5
    assert {kill.number for kill in runs[0][1]} == {KILL, TERM, INT, USR1}
    assert runs[0][1][0] == Kill(sent[0][1], "var fit", 1.0)


def test_a_start_is_always_the_same_command() -> None:
    for stage in STAGES:
        assert words_of(stage) == words_of(stage)
        assert "--ckpt_path" not in " ".join(words_of(stage)), "it finds its place by itself"
