import pytest
import torch

from varlit.generation.memory import fitting_batch, told_batch


@pytest.mark.parametrize(("limit", "found"), [(40, 32), (32, 32), (31, 16), (1, 1), (0, 0)])
def test_the_first_half_that_fits_is_named(limit: int, found: int):
    tried = []

    def draw(size: int) -> None:
        tried.append(size)
        if size > limit:
            raise torch.OutOfMemoryError

    assert fitting_batch(draw, 64) == found
    assert tried == [size for size in (32, 16, 8, 4, 2, 1) if size >= max(found, 1)]


def test_other_errors_are_no_answer():
    with pytest.raises(ZeroDivisionError):
        fitting_batch(lambda _: 1 / 0, 4)


def test_the_line_names_what_fits_or_another_way():
    assert "--batch_size 16 was tried and fits" in told_batch("--batch_size", 64, 16)
    assert "even with one image" in told_batch("--batch_size", 64, 0)
