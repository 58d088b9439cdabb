"""What was drawn outlives a cut, whichever process goes on with it."""

import pytest
import torch

from varlit.metrics.image_features import ImageFeatures
from varlit.metrics.networks import FeatureNetwork
from varlit.training import evaluation_saved


class Means(torch.nn.Module):
    def forward(self, images):
        return images.float().mean(dim=(2, 3)) / 255


@pytest.fixture
def network():
    return FeatureNetwork(Means(), "means")


def test_files_of_processes_never_replace_each_other_s(tmp_path, network, monkeypatch):
    # After a cut the first process takes over the larger file, that of the second one.
    def place(rank):
        monkeypatch.setattr(evaluation_saved, "place_among_ranks", lambda: (rank, 2))
        return evaluation_saved.SavedFeatures(tmp_path, 0)

    def see(features, ids):
        features.update(ids, torch.randint(256, (len(ids), 3, 4, 4), dtype=torch.uint8))

    for rank, ids in enumerate((torch.arange(8), torch.arange(8, 24))):
        features = ImageFeatures(network)
        see(features, ids)
        place(rank).save(features)
    saved, features = [place(rank) for rank in range(2)], [ImageFeatures(network) for _ in range(2)]
    for one, its in zip(saved, features, strict=True):
        one.load_into(its)
    assert [its.count for its in features] == [16, 8]
    see(features[1], torch.arange(24, 32))
    saved[1].save(features[1])  # 16 images by rank 1, as in the file that rank 0 answers for
    see(features[0], torch.arange(32, 40))
    saved[0].save(features[0])
    held = [torch.load(path, weights_only=True)["ids"] for path in tmp_path.glob("rank-*.pt")]
    assert sorted(torch.cat(held).tolist()) == list(range(40))
