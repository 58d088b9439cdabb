from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from varlit.errors import UserError
from varlit.metrics.networks import open_network

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*:FutureWarning")


class Pooled(nn.Module):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        pool = images.float().flatten(2).mean(2)
        return {"pool": pool, "logits": pool[:, :2]}


class Particular(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().view(len(images), 3 * 8 * 8)


@pytest.fixture
def scripted(tmp_path: Path) -> str:
    path = tmp_path / "my pool.pt"
    torch.jit.script(Pooled()).save(str(path))
    return str(path)


def test_a_trusted_file_becomes_a_network_that_bears_its_name(scripted):
    network = open_network("torchscript", scripted, trust_torchscript=True)
    assert network.name == "torchscript_my_pool"
    assert (network.feature_dim, network.num_classes) == (3, 2)
    images = torch.full((2, 3, 4, 4), 7, dtype=torch.uint8)
    assert network(images).pool.tolist() == [[7.0] * 3] * 2


def test_nothing_is_run_before_the_user_vouches_for_it(scripted, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(UserError, match=r"is a program.*trust_torchscript"):
        open_network("torchscript", scripted)


def test_what_is_no_such_file_is_named(tmp_path):
    with pytest.raises(UserError, match="needs its file"):
        open_network("torchscript")
    with pytest.raises(UserError, match="no TorchScript file"):
        open_network("torchscript", str(tmp_path / "absent.pt"), trust_torchscript=True)
    broken, other = tmp_path / "broken.pt", tmp_path / "particular.pt"
    broken.write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(UserError, match="cannot be read as TorchScript"):
        open_network("torchscript", str(broken), trust_torchscript=True)
    torch.jit.script(Particular()).save(str(other))
    with pytest.raises(UserError, match="must resize them itself"):
        open_network("torchscript", str(other), trust_torchscript=True)
