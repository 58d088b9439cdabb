"""What is kept of a skipped step, whatever its batch holds."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from varlit.callbacks import bad_steps
from varlit.callbacks.bad_steps import KEPT_FILES, Part


@pytest.mark.parametrize(
    ("value", "broken"),
    [
        (torch.tensor([1.0, math.nan, 2.0]), [8]),
        (torch.tensor([[[1.0]], [[math.inf]], [[math.nan]]]), [8, 9]),
        (torch.tensor(math.nan), []),
        (torch.tensor([math.nan, 1.0]), []),
        (torch.zeros(3, 0), []),
        (torch.tensor([1, 2, 3]), []),
    ],
)
def test_broken_images_are_found_in_tensors_of_any_shape(value: Tensor, broken: list[int]) -> None:
    batch = {"id": torch.tensor([7, 8, 9]), "value": value, "name": "x"}
    part = Part(batch, place=(0, 0), seed=0)
    assert bad_steps._broken_ids(SimpleNamespace(), part) == broken  # type: ignore[arg-type]


def test_a_batch_whose_ids_are_unknown_has_no_broken_ones() -> None:
    part = Part({"value": torch.zeros(0, 3)}, place=(0, 0), seed=0)
    trainer = SimpleNamespace(train_dataloader=None)
    assert bad_steps._broken_ids(trainer, part) == []  # type: ignore[arg-type]


def test_the_newest_ten_files_of_each_process_are_kept(tmp_path: Path) -> None:
    for rank in ("", "-rank1"):
        for step in range(1, 14):
            bad_steps._write(tmp_path / f"bad-step-{step:07d}{rank}.pt", {"step": step})
    assert KEPT_FILES == 10
    steps = range(4, 14)
    expected = {f"bad-step-{step:07d}{rank}.pt" for step in steps for rank in ("", "-rank1")}
    assert {path.name for path in tmp_path.iterdir()} == expected
