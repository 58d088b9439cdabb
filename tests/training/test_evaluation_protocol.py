import sys

import torch

from varlit.training.evaluation_protocol import versions


def test_all_that_has_a_say_in_the_figures_is_told_with_its_version(monkeypatch):
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    told = versions(torch.device("cpu"))
    assert {"torch", "torchvision", "Pillow", "scipy", "torchmetrics", "torch-fidelity"} <= {*told}
    assert "timm" not in told
    monkeypatch.setitem(sys.modules, "timm", object())
    assert "timm" in versions(torch.device("cpu"))
