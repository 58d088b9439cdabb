"""The benchmarks of reading images and tokens run, and what they race is the same work."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import image_reading
import token_reading
from tokenizer_sizes import SIZES

pytestmark = pytest.mark.filterwarnings("ignore")

QUICK = ["--size", "tiny", "--rounds", "1", "--lap_s", "0"]


@pytest.fixture(autouse=True)
def _threads_are_put_back():
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)
    torch.set_flush_denormal(False)


def test_images_print_their_rows(capsys):
    assert image_reading.main(QUICK) == 0
    told = capsys.readouterr().out
    rows = [image_reading.FOLDERS, image_reading.OURS, image_reading.DRAFT]
    rows += [image_reading.TEN_PASSES, image_reading.ONE_DECODE]
    assert all(f"\n{row} " in told for row in rows)


def test_both_loaders_give_batches_of_the_same_shape(tmp_path):
    image_reading.write_photos(tmp_path, 200, num_images=8)
    theirs = next(iter(image_reading.torchvision_loader(tmp_path, 32, 8)))
    [ours, *_] = image_reading.build_rivals(tmp_path, 32, 8)[1:]
    assert theirs[0].shape == (8, 3, 32, 32)
    assert theirs[0].min() >= -1
    assert ours.num_images == 8


def test_tokens_print_their_rows(capsys):
    assert token_reading.main([*QUICK, "--num_images", "16"]) == 0
    told = capsys.readouterr().out
    rows = [token_reading.FILES, token_reading.MAPPED, token_reading.IN_RAM]
    assert all(f"\n{row} " in told for row in [*rows, token_reading.ON_THE_FLY])


def test_both_layouts_hold_the_same_pyramids(tmp_path):
    token_reading.write_both(tmp_path, SIZES["tiny"], 16)
    files = token_reading.FilePerImage(tmp_path / "files", 16)
    data = token_reading.TokenDataModule(str(tmp_path / "cache"), 16)
    data.setup("fit")
    [batch] = data.train_dataloader()
    crops = {tuple(row) for i in range(16) for row in files_of(files, i)}
    assert {tuple(row) for row in batch["tokens"].tolist()} <= crops


def files_of(files, row):
    import numpy as np

    return np.load(files.folder / f"{row}.codes.npy")[0].tolist()
