import sys

import pytest
import torch
from safetensors.torch import save_file

from varlit.errors import UserError
from varlit.models.vision_transformer import FrozenViT

timm = pytest.importorskip("timm")
TRUNK = "test_vit"  # timm's tiny one: 160 px, six blocks of width 64


@pytest.fixture(scope="module")
def trunk_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "trunk.pth"
    torch.save(timm.create_model(TRUNK).state_dict(), path)  # with a classifier, as a real file
    return path


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("VARLIT_DINO", raising=False)


def test_token_maps_are_timm_s_own_after_the_named_blocks(trunk_file):
    trunk, images = FrozenViT(TRUNK, str(trunk_file)), torch.randn(2, 3, 160, 160)
    first, *maps = trunk.token_maps(images, (1, 4))
    official = trunk._network.forward_intermediates(
        images, [1, 4], output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )
    for found, (patches, prefix) in zip(maps, official, strict=True):
        torch.testing.assert_close(found, torch.cat((prefix, patches), dim=1))
    assert first.shape == maps[0].shape == (2, 1 + 100, 64)


def test_the_file_may_be_safetensors_and_named_by_the_environment(
    trunk_file, tmp_path, monkeypatch
):
    path = tmp_path / "trunk.safetensors"
    save_file(torch.load(trunk_file, weights_only=True), path)
    monkeypatch.setenv("VARLIT_DINO", str(path))
    loaded = FrozenViT(TRUNK)._network.state_dict()
    given = FrozenViT(TRUNK, str(trunk_file))._network.state_dict()
    assert any("pos_embed" in name for name in given)
    for name, value in given.items():
        assert torch.equal(loaded[name], value)


def test_weights_that_cannot_be_had_are_named_with_their_place(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(UserError) as caught:
        FrozenViT("vit_small_patch16_224.dino")
    for part in ("timm/vit_small_patch16_224.dino", "$VARLIT_DINO", "kind patch"):
        assert part in str(caught.value)


@pytest.mark.parametrize("content", ["missing", "text", "list", "other", "narrow"])
def test_a_file_that_is_not_the_trunk_is_named(tmp_path, trunk_file, content):
    path = tmp_path / "dino.pth"
    if content == "text":
        path.write_text("not weights")
    elif content == "list":
        torch.save([1, 2], path)
    elif content == "other":
        torch.save({"conv.weight": torch.zeros(1)}, path)
    elif content == "narrow":
        weights = torch.load(trunk_file, weights_only=True)
        torch.save(weights | {"cls_token": torch.zeros(1, 1, 3)}, path)
    with pytest.raises(UserError, match=r"dino\.pth"):
        FrozenViT(TRUNK, str(path))


def test_unfit_trunks_are_refused(tmp_path):
    with pytest.raises(UserError, match="no model vit_tiny_dina"):
        FrozenViT("vit_tiny_dina")
    with pytest.raises(UserError, match="class token"), torch.device("meta"):
        FrozenViT("resnet18")


def test_without_timm_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm"):
        FrozenViT(TRUNK)
