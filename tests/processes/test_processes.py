"""What becomes of the others when one process of a run fails, is killed, freezes or leaves.

They mostly wait, so several run at a time.
"""

import socket
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).parent
AT_A_TIME = 3
SIGKILLED = "it was killed by SIGKILL, most likely by the kernel because memory was full"
GONE = "it is gone without a word: killed, or its machine is"
REFUSED = "31 of 40 images cannot be used"
TINY = ["--model.tokenizer.num_res_blocks", "1", "--model.tokenizer.channel_multipliers"]
TINY += ["[1,1,1,1]", "--data.batch_size", "8", "--reconstructions.every_n_steps", "0"]
TINY += ["--trainer.accelerator", "cpu", "--trainer.max_steps", "20", "--name", "tok"]
FIT = ["tokenizer", "fit", "-c", "digits", *TINY, "--trainer.devices", "2"]
PHOTOS = ["tokenizer", "fit", "-c", "folder", *TINY, "--data.root", "photos"]
PHOTOS += ["--data.image_size", "32", "--data.num_workers", "2", "--model.loss.disc_weight", "0"]
PHOTOS += ["--model.loss.perceptual_weight", "0", "--model.tokenizer.scales", "[1,2,4]"]
LAUNCHED = ("raise-1", "raise-0", "refuse-1", "kill-1", "kill-0", "early-1", "orphan-0", "slow-1")
CLUSTERED = ("kill-1", "kill-0", "freeze-1")
COMMANDS = ("kill-1", "interrupt-0")
pytestmark = pytest.mark.slow


def draw_photos(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(40):
        path = folder / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def outcomes(start, tmp_path_factory):
    """What every scenario ended in, by its kind and name; the tests wait for their own."""
    crew, command = FOLDER / "crew.py", FOLDER / "damaged.py"

    def clustered(scenario):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = str(listener.getsockname()[1])
        ranks = [start(crew, scenario, ".", MASTER_PORT=port, LOCAL_RANK=rank) for rank in "01"]
        lost = int(scenario[-1])
        try:
            return ranks[1 - lost].wait()
        finally:
            ranks[lost].kill()

    folder = tmp_path_factory.mktemp("photos")

    def read_photos():
        draw_photos(folder / "photos")
        return start(command, *PHOTOS, folder=folder, VARLIT_TEST_DAMAGE="worker-13.png").wait()

    found: dict[str, Future] = {}
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for name in LAUNCHED:
            found[f"launched {name}"] = pool.submit(
                lambda name: start(crew, name, ".").wait(), name
            )
        for name in CLUSTERED:
            found[f"clustered {name}"] = pool.submit(clustered, name)
        for name in COMMANDS:
            found[f"command {name}"] = pool.submit(
                lambda name: start(command, *FIT, VARLIT_TEST_DAMAGE=name).wait(), name
            )
        found["photos"] = pool.submit(read_photos)
        yield found


@pytest.mark.parametrize(
    ("scenario", "code", "said"),
    [
        ("raise-1", 1, "varlit: rank 1 failed: ZeroDivisionError: a bug (traceback: errors/rank-1"),
        ("raise-0", 1, "varlit: rank 0 failed: ZeroDivisionError: a bug (traceback: errors/rank-0"),
        ("kill-1", 137, "varlit: rank 1 failed: " + SIGKILLED),
        ("kill-0", -9, "varlit: rank 0 failed: " + GONE),
        ("orphan-0", -9, "varlit: rank 0 failed: " + GONE),
        ("early-1", 2, "varlit [process 1]: too early"),
    ],
)
def test_one_process_that_fails_takes_the_others_along_and_says_why(outcomes, scenario, code, said):
    ended = outcomes[f"launched {scenario}"].result()
    assert ended.first.startswith(said), ended.err
    assert (ended.code, ended.num_left) == (code, 0)
    assert "is done" not in ended.out
    if scenario.startswith("raise"):
        kept = (ended.folder / "errors" / f"rank-{scenario[-1]}.txt").read_text()
        assert kept.startswith("Traceback")
        assert "ZeroDivisionError: a bug" in kept


def test_a_refusal_stays_one_line_of_each_side(outcomes):
    ended = outcomes["launched refuse-1"].result()
    assert sorted(ended.err.splitlines()) == [
        f"varlit [process 1]: {REFUSED}",
        f"varlit: rank 1 failed: {REFUSED}; the others were stopped",
    ]
    assert (ended.code, ended.num_left) == (2, 0)


@pytest.mark.parametrize("scenario", CLUSTERED)
def test_processes_that_a_cluster_has_started_miss_each_other(outcomes, scenario):
    witness = outcomes[f"clustered {scenario}"].result()
    said = "it has given no sign of life for 2 s" if scenario == "freeze-1" else GONE
    assert witness.first.startswith(f"varlit: rank {scenario[-1]} failed: {said}"), witness.err
    assert (witness.code, witness.num_left) == (1, 0)


def test_the_first_process_waits_for_the_last(outcomes):
    ended = outcomes["launched slow-1"].result()
    assert (ended.code, ended.num_left, ended.err) == (0, 0, "")
    assert sorted(ended.out.splitlines()) == ["rank 0 is done", "rank 1 is done"]


def test_a_training_by_lightning_ends_the_same_way(outcomes):
    ended = outcomes["command kill-1"].result()
    assert ended.first.startswith(f"varlit: rank 1 failed: {SIGKILLED}"), ended.err
    assert (ended.code, ended.num_left) == (137, 0), ended.err


def test_a_stop_that_was_asked_for_is_no_failure(outcomes):
    ended = outcomes["command interrupt-0"].result()
    assert "saved " in ended.out, ended.err
    assert (ended.code, ended.num_left) == (143, 0), ended.err
    assert "failed" not in ended.err


def test_a_worker_that_the_kernel_kills_is_named_in_one_line(outcomes):
    ended = outcomes["photos"].result()
    assert "Traceback" not in ended.err, ended.err
    assert " of the data loader's 2 (process " in ended.first
    assert "13.png' (Killed)" in ended.first
    assert "--data.num_workers 1" in ended.first
    assert (ended.code, ended.num_left) == (2, 0)
