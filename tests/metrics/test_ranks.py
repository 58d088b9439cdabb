import subprocess
import sys

import pytest
import torch

from varlit.metrics.ranks import concatenate_over_ranks, sum_over_ranks

TWO_PROCESSES = """
import sys, torch
from torch import distributed
from varlit.metrics.codebook import CodebookUsage
from varlit.metrics.networks import FeatureNetwork
from varlit.metrics.ranks import concatenate_over_ranks, sum_over_ranks
from varlit.ops.scales import Scales
from varlit.training.reconstruction_distance import ReconstructionDistance

rank, store = int(sys.argv[1]), sys.argv[2]
scales = Scales((1, 2))
generator = torch.Generator().manual_seed(0)
tokens = torch.randint(8, (7, 5), generator=generator)
images = torch.rand(30, 3, 4, 4, generator=generator) * 2 - 1

class Network(torch.nn.Module):
    def forward(self, images):
        features = images.float().flatten(2).mean(2) / 64
        return features, features * 3

def measure(part):
    usage = CodebookUsage(scales, 8)
    usage.update(tokens[part])
    metrics = ReconstructionDistance(FeatureNetwork(Network(), "means"))
    if len(images[part]):
        metrics.update(images[part], 1 - images[part].abs())
    return usage.compute(), metrics.compute()

usage, report = measure(slice(None))  # one process, everything
distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
for parts in ((slice(0, 2), slice(2, None)), (slice(None), slice(0, 0))):
    usage_2, report_2 = measure(parts[rank])
    assert torch.equal(usage.usage_by_scale, usage_2.usage_by_scale)
    assert torch.equal(usage.perplexity_by_scale, usage_2.perplexity_by_scale)
    assert usage.num_images == usage_2.num_images
    assert report_2.num_images == report.num_images
    assert abs(report_2.frechet - report.frechet) < 1e-9 * report.frechet
rows = concatenate_over_ranks(torch.full((1 + 2 * rank, 2), rank))
assert rows.tolist() == [[0, 0]] + 3 * [[1, 1]]
mine = torch.ones(2)
assert sum_over_ranks(mine).tolist() == [2, 2] and mine.tolist() == [1, 1]
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_measure_what_one_does_even_if_one_saw_nothing(tmp_path):
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


def test_a_single_process_needs_no_process_group():
    value = torch.arange(3)
    assert sum_over_ranks(value) is value
    assert concatenate_over_ranks(value) is value
