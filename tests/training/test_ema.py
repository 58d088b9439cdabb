import pytest
import torch
from torch import nn

from varlit.training.ema import averaged_copy, update_average


def make():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout())
    network.append(nn.Linear(2, 1))
    return network


def test_the_copy_is_frozen_and_its_own():
    network = make()
    average = averaged_copy(network)
    assert not average.training
    assert network.training
    assert not any(p.requires_grad for p in average.parameters())
    before = average[0].weight.clone()
    with torch.no_grad():
        network[0].weight.add_(1)
    assert torch.equal(average[0].weight, before)


def test_late_updates_follow_the_plain_formula_and_copy_buffers():
    network = make()
    average = averaged_copy(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
        network[1].running_mean.fill_(7)
    before = [p.clone() for p in average.parameters()]
    update_average(average, network, decay=0.9, step=10**6)
    for was, now, then in zip(before, average.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * was + 0.1 * then)
    assert torch.equal(average[1].running_mean, network[1].running_mean)
    assert average[1].num_batches_tracked == network[1].num_batches_tracked


def test_the_first_steps_follow_faster():
    for step, weight in ((0, 0.9), (1, 9 / 11), (8, 0.5)):
        network = nn.Linear(1, 1, bias=False)
        average = averaged_copy(network)
        nn.init.zeros_(average.weight)
        nn.init.ones_(network.weight)
        update_average(average, network, decay=0.999, step=step)
        assert average.weight.item() == pytest.approx(weight)


def test_a_resting_network_is_its_own_average():
    network = make()
    average = averaged_copy(network)
    for step in range(5):
        update_average(average, network, 0.99, step)
    for a, b in zip(average.parameters(), network.parameters(), strict=True):
        assert torch.equal(a, b)
