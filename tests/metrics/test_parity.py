"""The same numbers as torch-fidelity, through all of its own code and all of ours."""

import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from varlit.metrics.image_features import ImageFeatures
from varlit.metrics.inception import open_inception
from varlit.metrics.measures import MeasureSettings, measure
from varlit.metrics.mobilenet import open_mobilenet
from varlit.metrics.networks import FeatureNetwork
from varlit.metrics.references import make_reference
from varlit.models.mobilenet import MOBILENET_FILE

SHARED = Path(__file__).parents[3] / "shared" / "data"
WEIGHTS, PHOTOS = SHARED / "weights" / MOBILENET_FILE, SHARED / "flowers256.tar"


def write_folder(images: Tensor, folder: Path) -> Path:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:03d}.png")
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*weights are not torch-fidelity's")
def test_torch_fidelity_gives_the_same_five_numbers_of_two_folders_of_photos(
    tmp_path: Path, random_inception: Path, photos: Tensor
):
    from torch_fidelity import calculate_metrics

    real, fake = photos[:14], photos[12:28].flip(3)
    expected = calculate_metrics(
        input1=str(write_folder(fake, tmp_path / "fake")),
        input2=str(write_folder(real, tmp_path / "real")),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(random_inception),
        cuda=False,
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        isc_splits=3,
        kid_subsets=10,
        kid_subset_size=10,
        batch_size=11,
        save_cpu_ram=True,
        cache=False,
        verbose=False,
    )
    network = open_inception(str(random_inception))
    sets = [ImageFeatures(network) for _ in range(2)]
    for features, images in zip(sets, (real, fake), strict=True):
        for part in torch.arange(len(images)).split(16):
            features.update(part, images[part])
    settings = MeasureSettings(score_splits=3, kid_subsets=10, kid_subset_size=10, allow_few=True)
    found = measure(sets[1], make_reference(sets[0], "photos", "0"), settings).to_dict()
    pairs = {
        "quick_fid": "frechet_inception_distance",
        "quick_inception_score_mean": "inception_score_mean",
        "quick_inception_score_std": "inception_score_std",
        "quick_kid_mean": "kernel_inception_distance_mean",
        "quick_kid_std": "kernel_inception_distance_std",
        "quick_precision": "precision",
        "quick_recall": "recall",
    }
    for key, theirs in pairs.items():
        print(f"{key}: ours {found[key]!r}, torch-fidelity's {expected[theirs]!r}")
        assert found[key] == pytest.approx(expected[theirs], rel=1e-4), key
    assert expected["frechet_inception_distance"] > 1e-2
    assert expected["inception_score_mean"] > 1.05
    assert 0 < expected["precision"] < 1 or 0 < expected["recall"] < 1


@pytest.mark.slow
@pytest.mark.skipif(not (WEIGHTS.is_file() and PHOTOS.is_file()), reason="needs ../shared/data")
def test_real_features_of_photos_give_the_numbers_of_torch_fidelity_s_formulas():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    with tarfile.open(PHOTOS) as archive:
        names = sorted(n for n in archive.getnames() if "val/" in n and n.endswith(".jpg"))[::4]
        photos = [Image.open(archive.extractfile(n)).convert("RGB").resize((96, 96)) for n in names]
    images = torch.stack([torch.tensor(np.array(photo)) for photo in photos]).permute(0, 3, 1, 2)
    network = open_mobilenet(str(WEIGHTS))
    sets = [ImageFeatures(network) for _ in range(2)]
    for features, part in zip(sets, (images[::2], images[1::2]), strict=True):
        features.update(torch.arange(len(part)), part)
    fake, real = (features.rows.rows for features in sets)
    stats = [fid_features_to_statistics(rows.double()) for rows in (fake, real)]
    expected = {
        **fid_statistics_to_metric(*stats, verbose=False),
        **isc_features_to_metric(sets[0].logits.rows),
        **kid_features_to_metric(fake.double(), real.double(), kid_subset_size=20, verbose=False),
        **prc_features_to_metric(fake, real, verbose=False),
    }
    settings = MeasureSettings(kid_subset_size=20, allow_few=True)
    found = measure(sets[0], make_reference(sets[1], "flowers", "0"), settings)
    assert "quick_frechet_mobilenet_v2" in found.to_dict()
    pairs = {
        "frechet": "frechet_inception_distance",
        "score_mean": "inception_score_mean",
        "score_std": "inception_score_std",
        "kernel_mean": "kernel_inception_distance_mean",
        "kernel_std": "kernel_inception_distance_std",
        "precision": "precision",
        "recall": "recall",
    }
    for name, theirs in pairs.items():
        print(f"{found.title(name)}: ours {getattr(found, name)!r}, theirs {expected[theirs]!r}")
        assert getattr(found, name) == pytest.approx(expected[theirs], rel=1e-4), name


def test_more_images_than_were_once_kept_are_all_looked_at_as_torch_fidelity_does():
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    class Pixels(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.float().flatten(1)[:, :12] / 255

    generator, count = torch.Generator().manual_seed(0), 300
    draw = [torch.randint(top, (count, 3, 4, 4), generator=generator) for top in (256, 200)]
    network = FeatureNetwork(Pixels(), "pixels")
    fake, real = sets = [ImageFeatures(network) for _ in range(2)]
    for features, images in zip(sets, draw, strict=True):
        features.update(torch.arange(count), images.to(torch.uint8))
    settings = MeasureSettings(kid_subset_size=50, neighbour_images=100, allow_few=True)
    # torch-fidelity takes all real ones too; ADM's files hold fewer of them than of samples.
    for limit, kept in ((0, count), (100, 100)):
        reference = make_reference(real, "real", "0")
        found = measure(fake, reference, replace(settings, neighbour_images=limit))
        rows = [fake.rows.rows, reference.subset(kept)]
        expected = prc_features_to_metric(*rows, verbose=False)
        assert found.precision == pytest.approx(expected["precision"], rel=1e-4)
        assert found.recall == pytest.approx(expected["recall"], rel=1e-4)
        told = (found.protocol["precision_images"], found.protocol["recall_images"])
        assert told == (count, kept)
        rows = [features.rows.rows.double() for features in sets]
        expected = kid_features_to_metric(*rows, kid_subset_size=50, verbose=False)
        assert found.kernel_mean == pytest.approx(expected["kernel_inception_distance_mean"])
