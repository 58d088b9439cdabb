import pytest
import torch

from varlit.errors import UserError
from varlit.generation.random_numbers import GivenUniforms, ImageSeeds

CPU = torch.device("cpu")


def test_uniform_numbers_of_an_image_come_from_its_own_generator():
    both = ImageSeeds([1, 2])
    parts = both.uniform(slice(0, 5), CPU), both.uniform(slice(5, 8), CPU)
    alone = torch.rand(8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(torch.cat(parts, dim=1)[1], alone)


@pytest.mark.parametrize("lengths", [(1, 4, 9, 16), (1, 64, 400), (33, 7)])
def test_all_numbers_at_once_are_those_of_the_parts(lengths):
    seeds, total, start = ImageSeeds([5, -1]), sum(lengths), 0
    given = ImageSeeds([5, -1]).all_at_once(total, CPU)
    for length in lengths:
        part, start = slice(start, start + length), start + length
        assert torch.equal(seeds.uniform(part, CPU), given.uniform(part, CPU))


def test_numbers_that_are_given_serve_no_blending():
    with pytest.raises(UserError, match="give seeds or a generator"):
        GivenUniforms(torch.rand(1, 4)).exponential(torch.Size((1, 4, 8)), CPU)
