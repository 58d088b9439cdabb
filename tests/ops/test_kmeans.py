from itertools import pairwise

import pytest
import torch

from varlit.ops import kmeans as room
from varlit.ops.kmeans import kmeans, sums_by_code
from varlit.ops.quantize import nearest_code

each_search = pytest.mark.parametrize("search", ["euclidean", "cosine"])


def seed(value=0):
    return torch.Generator().manual_seed(value)


def spread(points, centres):
    return (points - centres[nearest_code(points, centres)]).square().sum().item()


def test_empty_clusters_move_to_the_far_points():
    rare = torch.randn(5, 3)
    points = torch.cat((torch.zeros(200, 3), rare))
    for start in range(5):
        centres = kmeans(points, 6, seed(start))
        assert (centres == 0).all(dim=1).any()
        assert spread(rare, centres) == pytest.approx(0, abs=1e-10), "twins at 0 were empty"


@each_search
def test_every_centre_is_the_mean_of_the_points_that_find_it(search):
    points = torch.randn(300, 4)
    centres = kmeans(points, 10, seed(), search, num_iterations=100)
    found = nearest_code(points, centres, search)
    counts, sums = sums_by_code(points, found, 10)
    assert counts.min() > 0
    torch.testing.assert_close((sums / counts[:, None]).float(), centres)


def test_more_steps_never_leave_more_over():
    points = torch.randn(400, 3)
    left = [spread(points, kmeans(points, 12, seed(), num_iterations=n)) for n in range(8)]
    assert all(after <= before * (1 + 1e-5) for before, after in pairwise(left))
    assert left[-1] < 0.9 * left[0]


def test_the_seed_decides_and_the_size_of_chunks_does_not(monkeypatch):
    points = torch.randn(500, 4)
    found = kmeans(points, 16, seed(1))
    assert torch.equal(found, kmeans(points, 16, seed(1)))
    assert not torch.equal(found, kmeans(points, 16, seed(2)))
    monkeypatch.setattr(room, "MAX_MATRIX_ELEMENTS", 16 * 7)
    assert torch.equal(found, kmeans(points, 16, seed(1)))


def test_fewer_points_than_clusters_are_all_centres():
    points = torch.randn(5, 3)
    centres = kmeans(points, 12, seed())
    assert centres.shape == (12, 3)
    assert spread(points, centres) == pytest.approx(0, abs=1e-10)


def test_sums_and_counts_are_those_of_a_loop():
    points, index = torch.randn(50, 3), torch.randint(7, (50,))
    counts, sums = sums_by_code(points, index, 8)
    for code in range(8):
        assert counts[code] == (index == code).sum()
        torch.testing.assert_close(sums[code], points[index == code].double().sum(dim=0))
