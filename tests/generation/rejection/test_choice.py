"""Rejection sampling keeps the best, the same whatever the batches, and says what it took."""

import math

import pytest
import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.generation.rejection.choice import Rejection, class_groups, keep_all, num_outputs
from varlit.generation.rejection.rule import RejectionCost, RejectionSettings
from varlit.generation.sampler import Drawn, ImageSeeds, SamplingSettings

LABELS, SEEDS = [0, 1, 0, 2, 1, 0, 0, 0], [7, 3, 0, 2, 9, 11, 4, 5]
ALL = (0, 1, 2)


def picture(label: int, seed: int) -> Tensor:
    drawn = torch.Generator().manual_seed(1000 * seed + label)
    return torch.rand(3, 4, 4, generator=drawn) * 2 - 1


def draw(labels: Tensor, seeds: list[int]) -> Drawn:
    pairs = zip(labels.tolist(), seeds, strict=True)
    images = torch.stack([picture(label, seed) for label, seed in pairs])
    return Drawn(images, torch.tensor(seeds).unsqueeze(1), [images])


def classify(images: Tensor) -> Tensor:
    """Each channel's mean speaks for a class."""
    return 8 * images.mean(dim=(2, 3))


def score(label: int, seed: int) -> float:
    return float(classify(picture(label, seed)[None]).double().softmax(1)[0, label])


def rejection(share=0.25, group_size=50, targets=ALL, judge=classify) -> Rejection:
    return Rejection(judge, targets, RejectionSettings(share, group_size))


def test_the_kept_have_the_highest_scores_of_their_class():
    kept = keep_all(rejection().keep(draw, LABELS, SEEDS, 5))
    for label in set(LABELS):
        wanted = [SEEDS[i] for i, one in enumerate(LABELS) if one == label]
        candidates = [4 * seed + r for seed in wanted for r in range(4)]
        best = sorted(candidates, key=lambda seed, of=label: -score(of, seed))[: len(wanted)]
        assert {kept.seeds[i] for i in range(8) if LABELS[i] == label} == set(best)
    for i, label in enumerate(LABELS):
        assert torch.equal(kept.drawn.images[i], picture(label, kept.seeds[i]))
        assert kept.drawn.tokens[i] == kept.seeds[i]
        assert torch.equal(kept.drawn.frames[0][i], kept.drawn.images[i])
        assert kept.scores[i] == pytest.approx(score(label, kept.seeds[i]))


def test_a_group_of_one_keeps_the_best_of_its_own_candidates():
    kept = keep_all(rejection(group_size=1).keep(draw, LABELS, SEEDS, 3))
    for i, label in enumerate(LABELS):
        own = range(4 * SEEDS[i], 4 * SEEDS[i] + 4)
        assert kept.seeds[i] == max(own, key=lambda seed, of=label: score(of, seed))


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_the_batch_size_changes_nothing(size):
    one = keep_all(rejection(group_size=2).keep(draw, LABELS, SEEDS, 4))
    other = keep_all(rejection(group_size=2).keep(draw, LABELS, SEEDS, size))
    assert one.seeds == other.seeds
    assert torch.equal(one.drawn.images, other.drawn.images)


def test_processes_that_share_the_groups_keep_what_one_keeps():
    groups = class_groups(LABELS, 2)
    assert groups == [[0, 2], [1, 4], [3], [5, 6], [7]]
    whole = keep_all(rejection(group_size=2).keep(draw, LABELS, SEEDS, 4))
    for world in (2, 3):
        for rank in range(world):
            own = rejection(group_size=2).keep(draw, LABELS, SEEDS, 4, groups[rank::world])
            for kept in own:
                assert kept.seeds == [whole.seeds[i] for i in kept.ids]


def test_keeping_all_draws_the_images_of_the_seeds_themselves():
    kept = keep_all(rejection(share=1.0).keep(draw, LABELS, SEEDS, 3))
    assert kept.seeds == SEEDS


def test_equal_scores_go_to_the_first_candidates():
    kept = keep_all(rejection(judge=lambda x: x.new_zeros(len(x), 3)).keep(draw, LABELS, SEEDS, 3))
    firsts = [4 * seed for seed in SEEDS]
    assert kept.seeds == firsts


@pytest.mark.parametrize(("share", "num_drawn"), [(0.5, 16), (0.3, 28), (0.1, 80), (0.75, 12)])
def test_the_share_is_kept_and_told(share, num_drawn):
    chooser = rejection(share)
    assert chooser.num_candidates(LABELS) == num_drawn  # 5, 2 and 1 wanted, each rounded up
    kept = keep_all(chooser.keep(draw, LABELS, SEEDS, 4))
    cost = chooser.cost.to_dict()
    assert len(kept.seeds) == cost["images_kept"] == 8
    assert cost["images_drawn"] == num_drawn
    assert cost["acceptance_share"] == pytest.approx(8 / num_drawn)
    assert cost["top1_kept"] > cost["top1_drawn"]
    assert 0 <= cost["classifier_share_of_time"] <= 1


def test_costs_of_two_parts_are_the_cost_of_the_whole():
    groups = class_groups(LABELS, 2)
    whole, parts, total = rejection(group_size=2), [], RejectionCost()
    list(whole.keep(draw, LABELS, SEEDS, 4))
    for rank in range(2):
        part = rejection(group_size=2)
        list(part.keep(draw, LABELS, SEEDS, 4, groups[rank::2]))
        parts.append(part.cost)
        total.add_counts(part.cost.counts())
    assert total.draw_s == parts[0].draw_s + parts[1].draw_s
    numbers = [
        (c.num_drawn, c.num_kept, c.num_known, c.num_known_kept) for c in (total, whole.cost)
    ]
    assert numbers[0] == numbers[1]
    assert isinstance(total.num_drawn, int)


def test_no_candidate_is_drawn_twice():
    seen: list[tuple[int, int]] = []

    def watched(labels: Tensor, seeds: list[int]) -> Drawn:
        seen.extend(zip(labels.tolist(), seeds, strict=True))
        return draw(labels, seeds)

    list(rejection(0.3).keep(watched, LABELS, SEEDS, 4))
    assert len(seen) == len(set(seen)) == 28


def test_classes_without_a_counterpart_are_drawn_once_and_kept():
    chooser = rejection(targets=(0, None, 2))
    kept = keep_all(chooser.keep(draw, LABELS, SEEDS, 4))
    assert [math.isnan(s) for s in kept.scores] == [label == 1 for label in LABELS]
    assert [kept.seeds[1], kept.seeds[4]] == [4 * 3, 4 * 9]
    cost = chooser.cost.to_dict()
    assert (cost["images_unjudged"], cost["images_kept"], cost["images_drawn"]) == (2, 6, 24)


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(UserError, match="class 0, seed 28, is not a number"):
        list(rejection(judge=lambda x: classify(x) * math.nan).keep(draw, LABELS, SEEDS, 4))


def test_certain_classifiers_are_told_apart_beyond_fp32():
    # Every probability is 1 in fp32, also in logarithms.
    sure = rejection(judge=lambda x: 40 * torch.eye(3)[[0] * len(x)] + classify(x))
    kept = keep_all(sure.keep(draw, [0], [1], 4))
    best = max(range(4, 8), key=lambda s: float(_margin(picture(0, s))))
    assert kept.seeds == [best]


def _margin(image: Tensor) -> Tensor:
    logits = classify(image[None]).double()[0]
    return logits[0] - logits[1:].logsumexp(0)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, math.nan])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(UserError, match="share to keep must lie above 0"):
        RejectionSettings(share)


def test_seeds_beyond_64_bits_are_refused_before_anything_is_drawn():
    def never(labels: Tensor, seeds: list[int]) -> Drawn:
        raise AssertionError("drawn")

    with pytest.raises(UserError, match="64 bits"):
        list(rejection().keep(never, [0], [2**62], 4))


def test_a_classifier_of_another_form_is_refused():
    assert num_outputs(classify, 4, torch.device("cpu")) == 3
    with pytest.raises(UserError, match=r"got \(2, 3, 4, 4\)"):
        num_outputs(lambda x: x, 4, torch.device("cpu"))


def test_real_drawings_are_chosen_too_and_as_one_function(sampler):
    free = SamplingSettings(top_k=0, top_p=0.0)

    def real(labels: Tensor, seeds: list[int]) -> Drawn:
        return sampler.draw(labels, free, ImageSeeds(seeds))

    chosen = rejection(0.5).drawing(real, 2)(torch.tensor([0, 0, 1]), [5, 6, 7])
    kept = keep_all(rejection(0.5).keep(real, [0, 0, 1], [5, 6, 7], 16))
    assert torch.equal(chosen.tokens, kept.drawn.tokens)
    plain = real(torch.tensor([0, 0, 1]), kept.seeds)
    assert torch.equal(plain.tokens, chosen.tokens)
