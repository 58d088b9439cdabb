import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from varlit.losses.adversarial import (
    LeCam,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)

REAL, FAKE = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])


def test_hinge_is_the_sum_of_both_halves():
    halves = (0 + 0.5 + 2) / 3, (0 + 1 + 2) / 3
    assert discriminator_loss(REAL, FAKE, "hinge").item() == pytest.approx(sum(halves))
    assert generator_loss(FAKE, "hinge").item() == pytest.approx(2 / 3)


def test_nonsaturating_is_the_cross_entropy_of_real_against_fake():
    loss = nn.BCEWithLogitsLoss()
    expected = loss(REAL, torch.ones(3)) + loss(FAKE, torch.zeros(3))
    torch.testing.assert_close(discriminator_loss(REAL, FAKE, "nonsaturating"), expected)
    torch.testing.assert_close(generator_loss(FAKE, "nonsaturating"), loss(FAKE, torch.ones(3)))


@pytest.mark.parametrize("kind", ["hinge", "nonsaturating"])
def test_each_player_gains_by_moving_its_logits(kind):
    real, fake = REAL.clone().requires_grad_(), (FAKE * 0.1).requires_grad_()
    discriminator_loss(real, fake, kind).backward()
    assert (real.grad <= 0).all()
    assert real.grad.sum() < 0
    assert (fake.grad > 0).all()
    fake.grad = None
    generator_loss(fake, kind).backward()
    assert (fake.grad < 0).all()


def test_lecam_averages_are_unbiased_from_the_first_update():
    lecam = LeCam(decay=0.9)
    assert lecam.penalty(REAL, FAKE).item() == 0
    for _ in range(3):
        lecam.update(torch.full((2,), 3.0), torch.full((2,), -1.0))
        # Constant logits: the averages are 3 and -1 whatever the number of updates.
        penalty = lecam.penalty(torch.tensor([2.0]), torch.tensor([1.0]))
        assert penalty.item() == pytest.approx((2 - -1) ** 2 + (3 - 1) ** 2, rel=1e-5)


def test_lecam_forgets_at_the_rate_of_its_decay():
    lecam = LeCam(decay=0.5)
    for real in (1.0, 2.0, 4.0):
        lecam.update(torch.tensor([real]), torch.tensor([0.0]))
    mean = (1 * 0.125 + 2 * 0.25 + 4 * 0.5) / 0.875
    assert (lecam.mean_real / lecam.gathered).item() == pytest.approx(mean)


def test_lecam_survives_a_checkpoint():
    lecam, restored = LeCam(), LeCam()
    lecam.update(REAL, FAKE)
    restored.load_state_dict(lecam.state_dict())
    torch.testing.assert_close(restored.penalty(REAL, FAKE), lecam.penalty(REAL, FAKE))


def test_lecam_penalty_pulls_logits_together():
    lecam = LeCam()
    lecam.update(torch.tensor([5.0]), torch.tensor([-5.0]))
    real, fake = torch.tensor([5.0], requires_grad=True), torch.tensor([-5.0], requires_grad=True)
    lecam.penalty(real, fake).backward()
    assert real.grad.item() == pytest.approx(20)
    assert fake.grad.item() == pytest.approx(-20)


def weigh(reconstruction_scale: float, adversarial_scale: float, **bounds: float) -> torch.Tensor:
    torch.manual_seed(0)
    layer = nn.Parameter(torch.randn(4, 4))
    out = torch.randn(2, 4) @ layer
    bounds = {"minimum": 0.0, "maximum": 1e4} | bounds
    nll, gan = reconstruction_scale * out.square().mean(), adversarial_scale * -out.mean()
    pulls = [torch.autograd.grad(loss, out)[0] for loss in (nll, gan)]
    weight = adaptive_weight(out, *pulls, layer, **bounds)
    out.sum().backward()  # the graph is still there
    return weight


def test_adaptive_weight_equalises_the_gradient_norms():
    base = weigh(1.0, 1.0)
    assert weigh(3.0, 1.0) / base == pytest.approx(3, rel=1e-4)
    assert weigh(1.0, 3.0) / base == pytest.approx(1 / 3, rel=1e-4)
    assert not base.requires_grad


def test_adaptive_weight_stays_within_its_bounds():
    assert weigh(1e-9, 1.0, minimum=0.015) == pytest.approx(0.015)
    assert weigh(1.0, 0.0, maximum=1e4) == pytest.approx(1e4)
    assert math.isfinite(weigh(0.0, 0.0))


TWO_PROCESSES = """
import sys, torch
from torch import distributed, nn
from varlit.losses.adversarial import LeCam, adaptive_weight
rank, store = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
lecam = LeCam()
lecam.update(torch.tensor([float(rank)]), torch.tensor([10.0 * rank]))
means = (lecam.mean_real / lecam.gathered, lecam.mean_fake / lecam.gathered)
torch.testing.assert_close(torch.stack(means), torch.tensor([0.5, 5.0]))
layer = nn.Parameter(torch.ones(1))
pulls = torch.tensor([1.0 + 2 * rank]), torch.tensor([1.0 + 4 * rank])
weight = adaptive_weight(layer * 1, *pulls, layer, 0.0, 100.0)
# Of the whole batch: (1 + 3) / (1 + 5). The mean of both ratios would be 4 / 5.
torch.testing.assert_close(weight, torch.tensor(4 / 6), atol=1e-4, rtol=0)
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_agree_on_lecam_and_on_the_adaptive_weight(tmp_path):
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(rank), str(tmp_path / "store")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
