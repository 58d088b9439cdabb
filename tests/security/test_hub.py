"""A model folder of the hub: config.json and safetensors are read, and nothing that holds code."""

import builtins
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

import varlit
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.files import save_tokenizer, save_var
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

SHAPE = TokenizerConfig(
    **{"channels": 32, "channel_multipliers": (1,), "num_res_blocks": 1, "codebook_size": 8},
    codebook_dim=4,
    scales=(1, 2),
)
HOSTILE = ("pytorch_model.bin", "model.pth", "last.ckpt", "tokenizer/pytorch_model.bin")
CODE = ("modeling_var.py", "config.py", "__init__.py", "tokenizer/__init__.py", "setup.py")


@pytest.fixture
def remote(tmp_path: Path, bomb: Any, trap: Path) -> Path:
    """A repository with a model, and beside it all that other libraries would run."""
    folder = tmp_path / "remote"
    save_tokenizer(VQVAE(SHAPE), folder / "tok")
    var = VAR(VARConfig(depth=1, width=8, num_heads=1), SHAPE, 2)
    save_var(var, folder / "tok", folder / "d1", ["cat", "dog"])
    for name in HOSTILE:
        torch.save({"state_dict": bomb}, folder / "d1" / name)
    for name in CODE:
        (folder / "d1" / name).write_text(f"from pathlib import Path\nPath({str(trap)!r}).touch()")
    (folder / "d1" / "tokens.npy").write_bytes(pickle.dumps(bomb))
    config = json.loads((folder / "d1" / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "modeling_var.Model"}, "class_path": "os.system"}
    (folder / "d1" / "config.json").write_text(json.dumps(config))
    return folder / "d1"


@pytest.fixture
def downloaded(remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's client, with its own filter, over a folder."""
    target = tmp_path / "cache"

    def snapshot_download(repo_id: str, allow_patterns: list[str], **_: object) -> str:
        names = [str(p.relative_to(remote)) for p in remote.rglob("*") if p.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(remote / name, target / name)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return target


def test_only_data_is_fetched(downloaded: Path) -> None:
    varlit.load("stranger/d1")
    found = sorted(str(p.relative_to(downloaded)) for p in downloaded.rglob("*") if p.is_file())
    assert found == [
        *("config.json", "model.safetensors"),
        *("tokenizer/config.json", "tokenizer/model.safetensors"),
    ]


def test_of_a_folder_only_data_is_opened(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real: Callable[..., Any] = builtins.open

    def watch(file: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(str(file))
        return real(file, *args, **kwargs)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was opened")

    for module in (builtins, __import__("io")):
        monkeypatch.setattr(module, "open", watch)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    model = varlit.load(remote)
    assert model.num_classes == 2
    inside = {str(Path(name).relative_to(remote)) for name in opened if str(remote) in name}
    assert "config.json" in inside
    allowed = {"config.json", "model.safetensors"}
    assert {Path(name).name for name in inside} <= allowed


def test_weights_that_are_a_pickle_under_the_name_of_safetensors_are_refused(
    remote: Path, bomb: Any
) -> None:
    torch.save({"a": bomb}, remote / "model.safetensors")
    with pytest.raises(varlit.UserError if hasattr(varlit, "UserError") else ValueError):
        varlit.load(remote)
