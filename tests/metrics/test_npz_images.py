import numpy as np
import pytest
import torch

from varlit.errors import UserError
from varlit.metrics.npz_images import NpzImages


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("world_size", [1, 3])
def test_all_ranks_together_read_every_image_once(tmp_path, pixels, save, world_size):
    save(tmp_path / "ref.npz", pixels, mu=np.zeros(3))
    images = NpzImages(tmp_path / "ref.npz")
    assert (images.count, images.side_px) == (11, 4)
    found = {}
    for rank in range(world_size):
        for ids, batch in images.batches(2, rank, world_size):
            assert batch.dtype == torch.uint8
            found |= dict(zip(ids.tolist(), batch, strict=True))
    assert sorted(found) == list(range(11))
    for i, image in found.items():
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels[i])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "holds no `arr_0`"),
        ({"arr_0": np.zeros((5, 4, 4, 3))}, r"got float64 \(5, 4, 4, 3\)"),
        ({"arr_0": np.zeros((5, 3, 4, 4), np.uint8)}, r"got uint8 \(5, 3, 4, 4\)"),
        ({"arr_0": np.zeros((5, 4, 6, 3), np.uint8)}, r"got uint8 \(5, 4, 6, 3\)"),
        ({"arr_0": np.zeros(7, np.uint8)}, r"got uint8 \(7,\)"),
        ({"arr_0": np.array([None], object)}, "cannot be read"),
    ],
)
def test_an_array_that_is_no_images_is_named(tmp_path, arrays, message):
    np.savez(tmp_path / "ref.npz", **arrays)
    with pytest.raises(UserError, match=message) as caught:
        NpzImages(tmp_path / "ref.npz")
    assert str(tmp_path / "ref.npz") in str(caught.value)


def test_a_damaged_file_is_named_and_never_measured(tmp_path, pixels):
    path = tmp_path / "ref.npz"
    np.savez(path, pixels)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        NpzImages(path)
    place = whole.index(pixels[5].tobytes())
    path.write_bytes(whole[:place] + b"\0\1\2\3" + whole[place + 4 :])
    with pytest.raises(UserError, match="Bad CRC-32"):
        list(NpzImages(path).batches(4))
