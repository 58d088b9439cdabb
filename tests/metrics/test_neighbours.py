import numpy as np
import pytest
import torch

from varlit.errors import UserError
from varlit.metrics import neighbours
from varlit.metrics.neighbours import PrecisionRecall, precision_recall


def cloud(count: int, dim: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).double()


def by_definition(real: np.ndarray, fake: np.ndarray, k: int) -> PrecisionRecall:
    def share(points: np.ndarray, centres: np.ndarray) -> float:
        inside = []
        for point in points:
            hit = False
            for i, centre in enumerate(centres):
                others = np.delete(centres, i, axis=0)
                radius = np.sort(np.linalg.norm(others - centre, axis=1))[k - 1]
                hit = hit or np.linalg.norm(point - centre) <= radius
            inside.append(hit)
        return float(np.mean(inside))

    return PrecisionRecall(share(fake, real), share(real, fake))


@pytest.mark.parametrize("k", [1, 3])
def test_it_is_the_algorithm_of_the_paper(k):
    real, fake = cloud(30), cloud(40, seed=1) * 0.7 + 1
    result = precision_recall(real, fake, k)
    assert result == by_definition(real.numpy(), fake.numpy(), k)
    assert 0 < result.precision < 1
    assert 0 < result.recall < 1


def test_the_same_set_is_perfect_and_a_distant_one_worthless():
    real = cloud(50)
    assert precision_recall(real, real) == PrecisionRecall(1, 1)
    assert precision_recall(real, real + 100) == PrecisionRecall(0, 0)


def test_one_mode_only_is_precise_but_recalls_that_mode_only():
    modes = torch.cat([cloud(50), cloud(50, seed=1) + 100])
    result = precision_recall(modes, modes[:50])
    assert result == PrecisionRecall(precision=1, recall=0.5)


def test_swapping_the_sets_swaps_precision_and_recall():
    real, fake = cloud(30), cloud(40, seed=1) * 1.5
    there, back = precision_recall(real, fake), precision_recall(fake, real)
    assert (there.precision, there.recall) == (back.recall, back.precision)


def test_chunks_do_not_change_the_result(monkeypatch):
    real, fake = cloud(30), cloud(40, seed=1)
    whole = precision_recall(real, fake)
    monkeypatch.setattr(neighbours, "_CHUNK", 7)
    assert precision_recall(real, fake) == whole


def test_far_from_the_origin_the_distances_keep_their_digits():
    real, fake = cloud(30), cloud(40, seed=1) * 1.5
    assert precision_recall(real + 1e7, fake + 1e7) == precision_recall(real, fake)


def test_arrays_are_taken_as_well_as_tensors():
    real, fake = cloud(30), cloud(40, seed=1)
    assert precision_recall(real.numpy(), fake.numpy()) == precision_recall(real, fake)


def test_too_few_images_for_k_neighbours_are_refused():
    with pytest.raises(UserError, match="3 real and 10 generated"):
        precision_recall(cloud(3), cloud(10), k=3)
