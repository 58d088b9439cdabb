import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from varlit.errors import UserError
from varlit.metrics.image_features import ImageFeatures
from varlit.metrics.measures import MeasureSettings, measure
from varlit.metrics.networks import FeatureNetwork, Features
from varlit.metrics.reference_files import Reference
from varlit.metrics.references import make_reference

SETTINGS = MeasureSettings(score_splits=4, kid_subsets=5, kid_subset_size=20)


def images(count: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, 8, 8), generator=draw, dtype=torch.uint8)


def gathered(network: FeatureNetwork, count: int, seed: int = 0) -> ImageFeatures:
    features = ImageFeatures(network)
    features.update(torch.arange(count), images(count, seed) // (1 + seed))
    return features


@pytest.fixture
def network(colours) -> FeatureNetwork:
    return FeatureNetwork(colours, "colours")


@pytest.fixture
def reference(network) -> Reference:
    return make_reference(gathered(network, 60), "sixty", "0")


def test_only_inception_s_numbers_are_called_fid_and_is(network, colours, reference):
    found = measure(gathered(network, 50, seed=1), reference, SETTINGS)
    plain = found.to_dict()
    assert list(plain) == [
        f"quick_{name}_colours"
        for name in (
            "frechet",
            "spatial_frechet",
            "score_mean",
            "score_std",
            "score_whole",
            "kernel_mean",
            "kernel_std",
            "precision",
            "recall",
        )
    ]
    assert "quick Frechet distance (colours)" in found.table()
    inception = FeatureNetwork(colours, "inception", is_inception=True)
    real = make_reference(gathered(inception, 60), "sixty", "0")
    named = measure(gathered(inception, 50, seed=1), real, SETTINGS)
    assert {"quick_fid", "quick_sfid", "quick_kid_mean"} < named.to_dict().keys()
    assert {"quick FID", "quick sFID", "quick IS"} < named.table().keys()
    assert list(named.to_dict().values()) == list(plain.values())
    full = Reference("r", "0", "inception", "", real.pool)
    many = ImageFeatures(inception, max_rows=10, with_logits=False)
    draw = torch.Generator().manual_seed(0)
    pool = torch.randn(50_000, 6, generator=draw)
    many.add(torch.arange(50_000), Features(pool, pool[:, :4]))
    assert list(measure(many, full, SETTINGS).to_dict()) == ["fid"]


def test_the_protocol_says_all_that_the_numbers_depend_on(network, reference):
    protocol = measure(gathered(network, 50, seed=1), reference, SETTINGS).protocol
    json.dumps(protocol)
    expected = {
        "features": "colours",
        "weights_sha256": network.hash,
        "rounding": "uint8, nearest",
        "num_images": 50,
        "reference": "sixty",
        "reference_images": 60,
        "kid_subset_size": 20,
        "score_seed": 2020,
        "neighbours": 3,
        "precision_images": 50,
        "recall_images": 60,
    }
    assert expected.items() <= protocol.items()


def test_torchmetrics_gives_the_same_distances_of_the_same_images(colours, network, reference):
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Pool(torch.nn.Module):
        num_features = 6

        def forward(self, images):
            return colours(images).pool

    metric = FrechetInceptionDistance(feature=Pool())
    metric.update(images(60), real=True)
    metric.update(images(50, seed=1) // 2, real=False)
    found = measure(gathered(network, 50, seed=1), reference, SETTINGS).frechet
    assert found == pytest.approx(float(metric.compute()), rel=1e-4)  # theirs is rounded to fp32


def test_real_images_against_themselves_are_perfect(network, reference):
    same = ImageFeatures(network)
    same.update(torch.arange(60), images(60))
    found = measure(same, reference, SETTINGS)
    assert found.frechet == pytest.approx(0, abs=1e-6)
    assert found.spatial_frechet == pytest.approx(0, abs=1e-6)
    assert (found.precision, found.recall) == (1, 1)


def test_fewer_images_than_features_are_refused_or_labelled(network, reference):
    few = gathered(network, 6, seed=1)
    with pytest.raises(UserError, match="6 generated images for 6 features"):
        measure(few, reference, SETTINGS)
    settings = MeasureSettings(score_splits=2, kid_subsets=2, kid_subset_size=6, allow_few=True)
    found = measure(few, reference, settings)
    assert len(found.remarks) == 1
    assert "6 generated images" in found.remarks[0]
    assert all(name.startswith("quick_") for name in found.to_dict())


def test_a_reference_of_statistics_alone_leaves_out_what_needs_images(network, reference):
    alone = Reference("stats", "0", "colours", network.hash, reference.pool)
    found = measure(gathered(network, 50, seed=1), alone, SETTINGS)
    assert found.frechet > 0
    assert found.spatial_frechet is found.precision is found.kernel_mean is None
    assert found.score_mean is not None
    assert "precision_images" not in found.protocol
    (remark,) = found.remarks
    assert "the reference stats holds statistics of images and not their size" in remark
    assert measure(gathered(network, 50, seed=1), reference, SETTINGS).remarks == ()
    unknown = replace(alone, pool=replace(alone.pool, count=None))
    (remark,) = measure(gathered(network, 50, seed=1), unknown, SETTINGS).remarks
    assert "not their number and size: one of another size would not be noticed" in remark


def test_samples_of_another_size_than_the_reference_are_refused(network, reference):
    samples = ImageFeatures(network)
    samples.update(torch.arange(50), images(50)[:, :, :4, :4])
    with pytest.raises(UserError, match="images of 8 px; the samples have 4 px"):
        measure(samples, reference, SETTINGS)


THREE_PROCESSES = """
import sys, torch
from pathlib import Path
from torch import distributed
from varlit.metrics import neighbours
from varlit.metrics.image_features import ImageFeatures
from varlit.metrics.measures import MeasureSettings, measure
from varlit.metrics.networks import FeatureNetwork, Features
from varlit.metrics.references import cached_reference

rank, store = int(sys.argv[1]), sys.argv[2]
neighbours._CHUNK = 7

class Network(torch.nn.Module):
    def forward(self, images):
        pool = torch.stack([row.float().flatten() for row in images])[:, :6] / 64
        return Features(pool, pool[:, :3].square(), pool * 2)

network = FeatureNetwork(Network(), "pixels")
draw = torch.Generator().manual_seed(0)
real, fake = (
    torch.randint(256, (n, 3, 4, 4), generator=draw, dtype=torch.uint8) for n in (50, 40)
)
settings = MeasureSettings(4, 2020, 7, 20, neighbour_images=30)

def evaluate(ids_of):
    def gather(features):
        for part in ids_of(50).split(8):
            features.update(part, real[part])
    reference = cached_reference("real", "source", network, gather)
    samples = ImageFeatures(network, max_rows=35)
    for part in ids_of(40).split(4):
        samples.update(part, fake[part])
    return measure(samples, reference, settings)

import os
os.environ["VARLIT_CACHE"] = ""
alone = evaluate(torch.arange)
os.environ["VARLIT_CACHE"] = store + "_cache"
distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=3)
shares = (
    lambda n: torch.arange(rank, n, 3),
    lambda n: torch.arange(n).flip(0)[rank::3],
    lambda n: torch.arange(n) if rank == 1 else torch.arange(0),
)
for ids_of in shares:
    together = evaluate(ids_of)
    for name, value in alone.to_dict().items():
        error = abs(together.to_dict()[name] - value)
        assert error <= (1e-12 * abs(value) if "frechet" in name else 0), (name, value, error)
    assert together.protocol == alone.protocol and together.num_images == 40
    assert len(list(Path(store + "_cache").glob("references/*.npz"))) == 1
    if rank == 0:
        print({name: f"{value:.15g}" for name, value in together.to_dict().items()})
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_three_processes_measure_what_one_does(tmp_path: Path):
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", THREE_PROCESSES, str(rank), str(tmp_path / "store")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    errors = [run.communicate(timeout=180)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], errors
