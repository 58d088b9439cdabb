import numpy as np
import pytest
import torch

from varlit.errors import UserError
from varlit.generation.editing.known import known_scales
from varlit.generation.requests import (
    Request,
    as_classes,
    as_seeds,
    check_fits,
    check_generator,
    draw_batches,
    draw_request,
)
from varlit.generation.sampler import Sampler, SamplingSettings

LABELS = torch.tensor([0, 1, 2, 1, 3])
FREE = SamplingSettings(cfg_scale=1.0, top_k=0, top_p=0.0)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (2, [2]),
        (None, [9]),
        ([1, None, 0], [1, 9, 0]),
        ((4,), [4]),
        (torch.tensor([[1, 2]]), [1, 2]),
        (torch.tensor([1, 2], dtype=torch.uint8), [1, 2]),
        (np.array([1, 2], dtype=np.uint8), [1, 2]),
        (np.int64(3), [3]),
        (range(3), [0, 1, 2]),
    ],
)
def test_labels_are_numbers_tensors_or_none_for_unconditional(labels, classes):
    # Always int64: in a narrow type the unconditional class, 1000, would not be representable.
    found = as_classes(labels, 9)
    assert (found.tolist(), found.dtype) == (classes, torch.int64)


@pytest.mark.parametrize("label", [-1, 10, 2**70])
def test_a_label_out_of_range_is_named_before_any_device_sees_it(label):
    with pytest.raises(UserError, match=rf"0\.\.8, or be None or 9 .* got {label}$"):
        as_classes([0, label], 9)


@pytest.mark.parametrize("labels", [1.7, [1.7], torch.tensor([1.0]), [True], "3", ["3"]])
def test_a_label_that_is_no_whole_number_is_refused(labels):
    with pytest.raises(UserError, match="a label must be a whole number"):
        as_classes(labels, 9)


def test_no_label_at_all_is_refused():
    with pytest.raises(UserError, match="no labels were given"):
        as_classes([], 9)


def test_one_seed_counts_up_and_several_are_taken_as_they_are():
    assert as_seeds(5, None, 3) == [5, 6, 7]
    assert as_seeds([9, 1], None, 2) == [9, 1]
    assert as_seeds(None, None, 2) is None
    assert as_seeds(np.int64(5), None, 2) == as_seeds(torch.tensor(5), None, 2) == [5, 6]
    assert as_seeds(np.array([9, 1]), None, 2) == [9, 1]
    with pytest.raises(UserError, match="one for each of 3 images; got 2"):
        as_seeds([1, 2], None, 3)
    with pytest.raises(UserError, match="a seed or a generator, not both"):
        as_seeds(0, torch.Generator(), 3)


def test_a_seed_that_comes_twice_for_a_label_is_refused():
    assert as_seeds([5, 5], None, 2) == [5, 5]
    assert as_seeds([5, 5, 6], None, 3, torch.tensor([0, 1, 1])) == [5, 5, 6]
    with pytest.raises(UserError, match="seed 5 is given 2 times for label 1"):
        as_seeds([5, 6, 5], None, 3, torch.tensor([1, 1, 1]))


def test_beside_known_tokens_a_seed_may_come_twice(sampler):
    request, labels = Request(sampler.tokenizer, [5, 5], None, 2), torch.tensor([1, 1])
    with pytest.raises(UserError, match="seed 5 is given 2 times for label 1"):
        draw_request(sampler.var, request, labels, FREE)
    tokens = torch.randint(24, (2, 21))
    known = known_scales(tokens, sampler.var.scales, 1)
    drawn = draw_request(sampler.var, request, labels, FREE, known)
    assert torch.equal(drawn.tokens[:, 0], tokens[:, 0])


@pytest.mark.parametrize("is_edit", [False, True])
def test_a_batch_that_does_not_fit_names_one_that_does(sampler, monkeypatch, is_edit):
    draw = Sampler.draw

    def too_small_a_card(self, labels, *args, **kwargs):
        if len(labels) > 3:
            raise torch.OutOfMemoryError
        return draw(self, labels, *args, **kwargs)

    monkeypatch.setattr(Sampler, "draw", too_small_a_card)
    known = known_scales(torch.zeros(9, 21, dtype=torch.int64), sampler.var.scales, 1)
    given = known if is_edit else None
    request, labels = Request(sampler.tokenizer, 0, None, 8), torch.ones(9, dtype=torch.long)
    with pytest.raises(UserError, match="memory at batch_size 8; batch_size 2 was tried and fits"):
        draw_request(sampler.var, request, labels, FREE, given)
    stream = Request(sampler.tokenizer, None, torch.Generator(), 2)
    with pytest.raises(UserError, match="all 9 images are drawn as one batch; give a seed"):
        draw_request(sampler.var, stream, labels, FREE, given)


@pytest.mark.parametrize("batch_size", [1.5, "2", None, True])
def test_a_batch_size_that_is_no_whole_number_is_refused(sampler, batch_size):
    request = Request(sampler.tokenizer, 0, None, batch_size)
    with pytest.raises(UserError, match="batch_size must be a whole number; got"):
        draw_request(sampler.var, request, LABELS, FREE)


@pytest.mark.parametrize("seed", [1.5, "a", [1.5], [None], [True]])
def test_a_seed_that_is_no_whole_number_is_refused(seed):
    with pytest.raises(UserError, match="a seed must be a whole number"):
        as_seeds(seed, None, 1)


def test_a_seed_too_large_for_torch_is_refused():
    assert as_seeds(-(2**63), None, 1) == [-(2**63)]
    with pytest.raises(UserError, match="64 bits"):
        as_seeds(2**63 - 1, None, 2)


def test_a_stream_of_another_device_is_refused():
    check_generator(None, torch.device("cuda"))
    check_generator(torch.Generator(), torch.device("cpu"))
    with pytest.raises(UserError, match=r"on cpu and the VAR on cuda.*Generator\(\"cuda\"\)"):
        check_generator(torch.Generator(), torch.device("cuda", 0))
    with pytest.raises(UserError, match=r"must be a torch\.Generator; got 3"):
        check_generator(3, torch.device("cpu"))


def test_the_size_of_batches_does_not_change_the_images_of_seeds(sampler):
    def tokens(size):
        parts = draw_batches(sampler, LABELS, FREE, range(5), size)
        return torch.cat([part.tokens for part in parts])

    assert torch.equal(tokens(5), tokens(2))
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        tokens(0)


def test_a_tokenizer_that_does_not_fit_is_refused_by_what_differs(sampler):
    check_fits(sampler.tokenizer, sampler.var)
    with pytest.raises(UserError, match=r"scales \[1, 3, 4\].*with_scales"):
        check_fits(sampler.tokenizer.with_scales((1, 3, 4)), sampler.var)
    with pytest.raises(UserError, match=r"must be a tokenizer.*got a VAR"):
        check_fits(sampler.var, sampler.var)
    with pytest.raises(UserError, match="move one with"):
        check_fits(sampler.tokenizer.to("meta"), sampler.var)
