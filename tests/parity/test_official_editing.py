"""The official notebook's edits through the public `edit`, where the reference tensors lie."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from varlit.checkpoints.pretrained import PretrainedVAR, PretrainedVQVAE
from varlit.generation.editing.known import known_outside
from varlit.models.files import LoadedVAR

pytestmark = pytest.mark.slow


@pytest.fixture
def models(make_var, tokenizer):
    own = PretrainedVQVAE.of(tokenizer)
    return own, PretrainedVAR.of(LoadedVAR(make_var(), own, Path()))


@pytest.fixture(params=["edit_inpaint", "edit_outpaint"])
def expected(request, case):
    return case[request.param]


def notebook_known(mask, sides):
    """Where the notebook puts tokens of the photo back, by its own lines and not by ours.  # (L,)

    Its mask (h, w) marks what is known. Cell 2 resizes it to each scale; the 1x1 map is always
    the photo's.
    """
    maps = []
    for side in sides:
        resized = F.interpolate(
            mask.view(1, 1, *mask.shape[-2:]).float(),
            (side, side),
            None,
            "bilinear",
            align_corners=False,
        )
        maps.append(torch.ones(1).bool() if side == 1 else (resized > 0.5).flatten())
    return torch.cat(maps)


def test_what_is_known_is_what_the_notebook_puts_back(models, case, expected):
    tokenizer, _ = models
    known = known_outside(tokenizer, case["img"], 1 - expected["mask"])
    official = notebook_known(expected["mask"], tokenizer.scales.sides)
    assert torch.equal(known.is_known, official.expand_as(known.is_known))
    assert 0 < official.float().mean() < 1, "or the reference could not tell a wide mask"


def test_edit_draws_what_the_official_notebook_draws(models, case, expected, close):
    tokenizer, var = models
    mask = 1 - expected["mask"]  # the notebook marks what is known
    settings = {"cfg_scale": expected["cfg"], "top_k": 1, "top_p": 0.0}
    images, drawn = var.edit(case["img"], mask, **settings, return_tokens=True)
    # The notebook records what was drawn before it puts the known tokens back.
    official = torch.cat(expected["idx_Bl"], dim=1)
    is_known = notebook_known(expected["mask"], tokenizer.scales.sides)
    assert torch.equal(drawn[:, ~is_known], official[:, ~is_known])
    assert torch.equal(drawn[:, is_known], tokenizer.encode(case["img"])[:, is_known])
    if "img01" in expected:
        close.images((images + 1) / 2, expected["img01"])


def test_kept_pixels_change_the_picture_outside_the_mask_alone(models, case, expected):
    _, var = models
    mask = (1 - expected["mask"]).bool()
    settings = {"cfg_scale": expected["cfg"], "top_k": 1, "top_p": 0.0}
    plain = var.edit(case["img"], mask, **settings)
    kept = var.edit(case["img"], mask, **settings, keep_known_pixels=True, feather_px=0)
    size = case["img"].shape[-1]
    pixels = mask.view(1, 1, *mask.shape[-2:]).float()
    inside = torch.nn.functional.interpolate(pixels, (size, size)).bool().expand_as(kept)
    assert torch.equal(kept[inside], plain[inside])
    assert torch.equal(kept[~inside], case["img"][~inside])
