import math

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from varlit.errors import UserError
from varlit.metrics.reconstruction import MAXIMUM_PSNR_DB, psnr, ssim, to_uint8


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_bytes_survive_the_way_to_floats_and_back():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(every.float() / 127.5 - 1), every)
    assert to_uint8(every) is every


def test_values_are_rounded_not_truncated_and_clamped():
    assert to_uint8(torch.tensor([-3.0, 3.0, 0.999, -0.995])).tolist() == [0, 255, 255, 1]


def test_psnr_is_that_of_each_pair_on_eight_bits():
    a, b = noise(3, 3, 16, 16), noise(3, 3, 16, 16, seed=1)
    expected = [
        peak_signal_noise_ratio(x / 255, y / 255, data_range=1.0)
        for x, y in zip(to_uint8(a).float(), to_uint8(b).float(), strict=True)
    ]
    torch.testing.assert_close(psnr(a, b), torch.stack(expected))


def test_psnr_of_one_grey_level_is_48_db_and_below_half_a_level_it_is_the_maximum():
    black = torch.full((1, 3, 8, 8), -1.0)
    assert psnr(black, black + 2 / 255).item() == pytest.approx(20 * math.log10(255), abs=1e-3)
    assert psnr(black, black + 0.4 * 2 / 255).item() == MAXIMUM_PSNR_DB


def test_ssim_is_1_for_equal_images_and_falls_with_noise():
    images = noise(2, 3, 32, 32)
    steps = [ssim(images, images + scale * noise(2, 3, 32, 32, seed=1)) for scale in (0, 0.2, 1)]
    assert steps[0].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert (steps[0] > steps[1]).all()
    assert (steps[1] > steps[2]).all()


def test_ssim_does_not_cancel_under_autocast():
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    others = (images + torch.randn_like(images) / 10).clamp(-1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = ssim(images, others)
    assert torch.equal(found, ssim(images, others))


def test_ssim_of_flat_images_follows_the_luminance_term():
    a, b = torch.full((1, 3, 16, 16), -0.2), torch.full((1, 3, 16, 16), 0.6)
    x, y = (to_uint8(flat).float().mean().item() / 255 for flat in (a, b))
    expected = (2 * x * y + 1e-4) / (x * x + y * y + 1e-4)
    assert ssim(a, b).item() == pytest.approx(expected, rel=1e-3)


def test_ssim_takes_one_image_and_refuses_images_below_its_window():
    assert ssim(noise(1, 3, 11, 11), noise(1, 3, 11, 11)).shape == (1,)
    with pytest.raises(UserError, match="window of 11 px; got images of 10 px"):
        ssim(noise(1, 3, 32, 10), noise(1, 3, 32, 10))


def test_rounding_down_is_that_of_adm_and_of_the_demo_of_var():
    images = torch.linspace(-1.1, 1.1, 1001)
    adm = ((images + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    assert torch.equal(to_uint8(images, "down"), adm)
    ones = torch.tensor([0.999, -0.999, 0.0])
    assert to_uint8(ones, "down").tolist() == [254, 0, 127]
    assert to_uint8(ones).tolist() == [255, 0, 128]
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels.float() / 127.5 - 1), levels)  # a PNG that was read
    with pytest.raises(UserError, match="`nearest` or `down`; got 'up'"):
        to_uint8(images, "up")
