import pytest
import torch
from torch import nn
from torch.nn import functional as F

from varlit.losses.gradient_penalty import r1_penalty


def test_the_penalty_of_a_linear_judge_is_the_square_of_its_weight():
    weight = torch.randn(3, 4, 4, requires_grad=True)
    penalty = r1_penalty(lambda x: (x * weight).sum(dim=(1, 2, 3)), torch.randn(5, 3, 4, 4))
    torch.testing.assert_close(penalty, weight.square().sum())
    penalty.backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach())


def test_many_logits_count_as_their_mean():
    weight, images = torch.randn(3, 4, 4), torch.randn(2, 3, 4, 4)

    def one(x):
        return (x * weight).sum(dim=(1, 2, 3))

    alike = r1_penalty(lambda x: one(x)[:, None, None].expand(-1, 7, 7), images)
    torch.testing.assert_close(alike, r1_penalty(one, images))


def test_it_reaches_the_judge_s_weights_and_not_the_images():
    judge, images = nn.Conv2d(3, 2, 3), torch.randn(2, 3, 8, 8, requires_grad=True)
    r1_penalty(lambda x: judge(x).square(), images).backward()
    assert judge.weight.grad.abs().sum() > 0
    assert images.grad is None


def test_autocast_does_not_reach_it():
    judge, images = nn.Conv2d(3, 2, 3), torch.randn(2, 3, 8, 8)
    outside = r1_penalty(lambda x: judge(x).square(), images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = r1_penalty(lambda x: judge(x).square(), images)
    assert torch.equal(inside, outside)
    assert r1_penalty(nn.Conv2d(3, 2, 3).double(), images.double()).dtype == torch.float64


@pytest.mark.filterwarnings("error")
def test_attention_is_differentiated_twice():
    embed = nn.Linear(3, 8)

    def judge(x):
        tokens = embed(x.flatten(2).transpose(1, 2))[:, None]
        return F.scaled_dot_product_attention(tokens, tokens, tokens).square()

    r1_penalty(judge, torch.randn(2, 3, 4, 4)).backward()
    assert embed.weight.grad.abs().sum() > 0
