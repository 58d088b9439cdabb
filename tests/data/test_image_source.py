import io
import pickle
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from varlit.data.bad_files import BadFile
from varlit.data.crops import SquareCrop
from varlit.data.decoding import read_rgb
from varlit.data.formats.encoded import Encoded
from varlit.data.image_source import MAX_TRIES, Handling, ImageSource
from varlit.data.loader import BAD_FILES, NOTES
from varlit.data.order import BatchIndex
from varlit.errors import UserError

CROP = SquareCrop(16, 1.125, True, 7)


def noise(row: int, size: tuple[int, int] = (24, 30)) -> Image.Image:
    values = np.random.default_rng(row).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


@dataclass
class Album:
    """Images in memory, some of them broken; counts how often each is read."""

    images: list[Encoded | OSError]
    reads: list[int] = field(default_factory=list)
    place: str = "the album"
    class_names: tuple[str, ...] = ("a", "b")

    @property
    def labels(self) -> np.ndarray:
        return np.arange(len(self), dtype=np.int64) % 2

    @property
    def names(self) -> np.ndarray:
        return np.array([b"%03d" % row for row in range(len(self))])

    def __len__(self) -> int:
        return len(self.images)

    def read(self, row: int) -> Encoded:
        self.reads.append(row)
        image = self.images[row]
        if isinstance(image, OSError):
            raise image
        return image

    def where(self, row: int) -> str:
        return f"album/{row}"

    def take(self, rows: np.ndarray) -> "Album":
        return Album([self.images[row] for row in rows])


def album(broken: dict[int, Encoded | OSError] | None = None, size: int = 12) -> Album:
    found = broken or {}
    return Album([found.get(row, noise(row)) for row in range(size)])


def read(
    images: Album, handling: Handling, ids: list[int], views: list[int] | int = 1
) -> dict[str, Any]:
    given = views if isinstance(views, list) else [views] * len(ids)
    source = ImageSource(images, CROP, handling)
    return source[BatchIndex(np.array(ids), np.array(given))]


def test_a_batch_is_pixels_labels_ids_and_views() -> None:
    batch = read(album(), Handling(), [3, 4, 3], [0, 1, 2])
    assert set(batch) == {"image", "label", "id", "crop"}
    assert batch["id"].tolist() == [3, 4, 3]
    assert batch["label"].tolist() == [1, 0, 1]
    assert batch["crop"].tolist() == [0, 1, 2]
    assert batch["image"].shape == (3, 3, 16, 16)
    pixels = (batch["image"] + 1) * 127.5
    expected = CROP(noise(3), 3, 0)
    assert torch.equal(pixels[0].round().to(torch.uint8).permute(1, 2, 0), torch.tensor(expected))


def test_all_views_of_an_image_are_cut_from_one_decoding_when_whole() -> None:
    views = [0, 1, 2, 3] * 2
    whole, part = album(), album()
    batches = [
        read(images, Handling(whole=handled), [3] * 4 + [5] * 4, views)
        for images, handled in ((whole, True), (part, False))
    ]
    assert whole.reads == [3, 5]
    assert len(part.reads) == 8
    difference = (batches[0]["image"] - batches[1]["image"]).abs().max() * 127.5
    assert difference < 40, "the same squares; noise shows Pillow's rounding most"
    expected = CROP.cut(noise(5), CROP.resize(noise(5)), 5, 2)
    got = (batches[0]["image"][6].permute(1, 2, 0) + 1) * 127.5
    assert np.array_equal(got.round().numpy().astype(np.uint8), expected)


def test_a_broken_image_is_replaced_by_one_that_seed_id_and_view_choose() -> None:
    images = album({4: b"no image"}, size=200)
    first = read(images, Handling(), [3, 4, 5])
    assert first["id"].tolist()[::2] == [3, 5]
    assert first["id"][1] not in (4, 5)
    assert first[BAD_FILES] == [BadFile("album/4", "not an image that Pillow can read")]
    replacement = int(first["id"][1])
    expected = CROP.cut_directly(noise(replacement), replacement, 1)
    got = (first["image"][1].permute(1, 2, 0) + 1) * 127.5
    assert np.array_equal(got.round().numpy().astype(np.uint8), expected)
    assert first["label"][1] == replacement % 2, "pixels and label of one image"
    again = read(images, Handling(), [4, 9])
    assert again["id"][0] == replacement
    others = {int(read(images, Handling(), [4], view)["id"][0]) for view in range(2, 12)}
    assert len(others) > 5, "another one in each epoch"


def test_replacements_that_are_broken_are_replaced_too() -> None:
    images = album(dict.fromkeys(range(1, 12), b""))
    batch = read(images, Handling(), [7])
    assert batch["id"].tolist() == [0]
    assert {bad.reason for bad in batch[BAD_FILES]} == {"an empty file"}
    assert batch[BAD_FILES][0].name == "album/7"


def test_where_nothing_can_be_read_the_source_gives_up() -> None:
    images = album({row: OSError(5, "Input/output error") for row in range(12)})
    with pytest.raises(UserError, match=r"album/7' \(Input/output error\): check the disk"):
        read(images, Handling(), [7])
    assert len(images.reads) == MAX_TRIES


def test_a_marked_image_keeps_its_row_black_under_a_negative_id() -> None:
    images = album({0: b"", 4: OSError(2, "No such file or directory")})
    batch = read(images, Handling(broken="mark", whole=True), [0, 4, 4, 5], [1, 0, 1, 0])
    assert batch["id"].tolist() == [-1, -5, -5, 5]
    assert batch["label"].tolist() == [0, 0, 0, 1]
    assert (batch["image"][:3] == -1).all()
    assert [bad.name for bad in batch[BAD_FILES]] == ["album/0", "album/4", "album/4"]


def test_a_broken_image_is_refused_on_request() -> None:
    with pytest.raises(UserError, match=r"album/4' \(an empty file\).*set on_bad_image to skip"):
        read(album({4: b""}), Handling(broken="stop"), [4])


def test_small_images_are_skipped_like_broken_ones() -> None:
    batch = read(album({4: noise(4, (40, 15))}), Handling(), [4])
    [bad] = batch[BAD_FILES]
    assert bad == BadFile("album/4", "40x15 px, smaller than the crop of 16 px")
    assert batch["id"][0] != 4


def test_small_images_are_enlarged_on_request_with_a_note() -> None:
    batch = read(album({4: noise(4, (1, 500))}), Handling(small="upscale"), [4, 5])
    assert batch["id"].tolist() == [4, 5]
    [(topic, sentence)] = batch[NOTES]
    assert topic == "small images"
    assert "'album/4' (1x500 px)" in sentence


@pytest.mark.parametrize("exif", [1, 6])
def test_draft_decodes_large_jpegs_smaller_and_leaves_the_crop_in_place(exif: int) -> None:
    ramp = np.tile(np.linspace(20, 230, 256)[:, None, None], (1, 200, 3))
    ramp += np.random.default_rng(0).normal(0, 8, ramp.shape)
    picture, file = Image.fromarray(ramp.astype(np.uint8)), io.BytesIO()
    tags = picture.getexif()
    tags[0x0112] = exif
    picture.save(file, "JPEG", quality=95, exif=tags)
    content = file.getvalue()
    assert min(read_rgb(content, 2 * CROP.resized_px).size) == 50
    images = album({4: content})
    sharp, soft = (read(images, Handling(draft=draft), [4], 0)["image"] for draft in (False, True))
    assert not torch.equal(sharp, soft)
    assert (sharp - soft).abs().max() * 127.5 < 6


def test_a_source_goes_to_workers_without_its_last_image() -> None:
    source = ImageSource(album(), CROP, Handling(whole=True))
    source._view(3, 1, [])
    assert source._last is not None
    assert pickle.loads(pickle.dumps(source))._last is None
