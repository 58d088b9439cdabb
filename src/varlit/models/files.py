"""Model folders that describe themselves: `config.json` beside `model.safetensors`.

A VAR folder also holds `tokenizer/`, so it can draw pictures without anything else; only one that
was converted from a file without a tokenizer lacks it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from varlit.disks import must_be_written, whole_file
from varlit.errors import UserError
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.initialization import shapes_only
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FOLDER = "config.json", "model.safetensors", "tokenizer"
FORMAT_VERSION = 1
MAX_CLASSES = 2**24
PARTS = {"tokenizer": ("tokenizer",), "var": ("var", "num_classes", "tokenizer")}
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class LoadedVAR:
    """A transformer and the tokenizer whose tokens it speaks, both frozen and in eval mode."""

    var: VAR
    bundled: VQVAE | None
    folder: Path
    class_names: tuple[str, ...] = ()

    @property
    def tokenizer(self) -> VQVAE:
        """The tokenizer in its folder.

        Raises:
            UserError: If there is none, as in a VAR converted without one.
        """
        if self.bundled is None:
            raise UserError(
                f"{self.folder} holds no tokenizer, so its tokens cannot be drawn; convert the VAR "
                "again with --tokenizer RUN, or copy a tokenizer's folder to "
                f"{self.folder / TOKENIZER_FOLDER}"
            )
        return self.bundled


def tokenizer_hash(network: VQVAE) -> str:
    """Fingerprint of a tokenizer: sha256 over its config and weights in canonical order."""
    digest = hashlib.sha256(json.dumps(network.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_tokenizer(network: VQVAE, folder: Path) -> None:
    """Write a tokenizer folder."""
    _write(folder, {"model": "tokenizer", "tokenizer": network.config.to_dict()}, network)


def load_tokenizer(folder: Path | str) -> VQVAE:
    """Read a tokenizer folder.

    Raises:
        UserError: If the folder holds no tokenizer, or a damaged one.
    """
    folder = Path(folder)
    config = read_model_config(folder)
    if config["model"] != "tokenizer":
        raise UserError(f"{folder} holds a {config['model']}, not a tokenizer; give its run folder")
    with _described(folder), shapes_only():
        network = VQVAE(TokenizerConfig.of(config["tokenizer"]))
    return _read_weights(network, folder)


def save_var(
    network: VAR,
    tokenizer: Path | VQVAE | None,
    folder: Path,
    class_names: Sequence[str] = (),
    fingerprint: str = "",
) -> None:
    """Write a VAR folder with its tokenizer inside.

    Args:
        network: The transformer.
        tokenizer: What it was trained with: a folder, whose files are linked or copied, or the
            network itself; None leaves it out. One of other scales is written with those of the
            VAR, as official VAR uses one tokenizer for 256 and 512 px.
        folder: Where to write.
        class_names: Names in the order of the labels, where there are any.
        fingerprint: `tokenizer_hash` of that tokenizer, where it is known already.
    """
    source = tokenizer if isinstance(tokenizer, Path) else None
    if source is not None and not fingerprint:
        tokenizer = load_tokenizer(source)
    if isinstance(tokenizer, VQVAE):
        fits = tokenizer.config.scales == network.scales.sides
        source = source if fits else None
        tokenizer = tokenizer if fits else tokenizer.with_scales(network.scales.sides)
        fingerprint = tokenizer_hash(tokenizer)
    # The config comes last: it makes the whole folder visible.
    if source is not None:
        (folder / TOKENIZER_FOLDER).mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            _link_or_copy(source / name, folder / TOKENIZER_FOLDER / name)
    elif isinstance(tokenizer, VQVAE):
        save_tokenizer(tokenizer, folder / TOKENIZER_FOLDER)
    _write(
        folder,
        {
            "model": "var",
            "var": network.config.to_dict(),
            "num_classes": network.num_classes,
            "tokenizer": network.tokenizer_config.to_dict(),
            "tokenizer_hash": fingerprint,
            "class_names": list(class_names),
        },
        network,
    )


def load_var(folder: Path | str) -> LoadedVAR:
    """Read a VAR folder together with its tokenizer.

    Raises:
        UserError: If the folder holds no VAR, or a damaged one.
    """
    folder = Path(folder)
    config = read_model_config(folder)
    if config["model"] != "var":
        raise UserError(
            f"{folder} holds a {config['model']}, not a VAR; `varlit reconstruct` takes tokenizers"
        )
    # A VAR that was saved without a tokenizer has no hash, and takes one put there later.
    expected, tokenizer = config.get("tokenizer_hash"), None
    if expected or (folder / TOKENIZER_FOLDER).is_dir():
        tokenizer = load_tokenizer(folder / TOKENIZER_FOLDER)
        if expected and expected != tokenizer_hash(tokenizer):
            raise UserError(
                f"{folder / TOKENIZER_FOLDER} is not the tokenizer that this VAR was trained with; "
                "copy the whole folder of the run again"
            )
    with _described(folder):
        shape = TokenizerConfig.of(config["tokenizer"]) if tokenizer is None else tokenizer.config
        with shapes_only():
            var = VAR(VARConfig.of(config["var"]), shape, config["num_classes"])
    names = tuple(config.get("class_names", ()))
    return LoadedVAR(_read_weights(var, folder), tokenizer, folder, names)


def read_model_config(folder: Path) -> dict[str, Any]:
    """Read the config of a model folder.

    Raises:
        UserError: If there is none or it is damaged.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"no model in {folder}: {CONFIG_FILE} is missing. A run writes it with its first "
            "checkpoint; is this the folder of a run, such as runs/<name>?"
        ) from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not valid JSON; copy it again from the run") from None
    if not isinstance(config, dict) or config.get("model") not in ("tokenizer", "var"):
        raise UserError(f"{path} does not describe a varlit model")
    for key in PARTS[config["model"]]:
        if key not in config:
            raise UserError(f"{path} lacks `{key}`; copy it again from the run")
    count, names = config.get("num_classes", 1), config.get("class_names", [])
    if type(count) is not int or not 1 <= count <= MAX_CLASSES:
        raise UserError(f"{path}: num_classes must be 1..{MAX_CLASSES:,}; copy it from the run")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: class_names must be a list of names; copy it from the run")
    return config


@contextmanager
def _described(folder: Path) -> Iterator[None]:
    """Say of a config that no network can be built of it; torch says so in many ways."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{folder / CONFIG_FILE}: {error}") from error
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{folder / CONFIG_FILE} describes no model ({reason}); copy it again from the run"
        ) from error


def _read_weights(network: M, folder: Path) -> M:
    path = folder / WEIGHTS_FILE
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; copy the whole folder of the run") from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); copy it again from the run") from None
    expected = network.state_dict()
    _check_same_keys(expected, weights, path)
    weights = {name: weight.to(expected[name].dtype) for name, weight in weights.items()}
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)


def _check_same_keys(expected: dict[str, Tensor], got: dict[str, Tensor], path: Path) -> None:
    for name, tensor in expected.items():
        if name not in got:
            raise UserError(f"{path} lacks `{name}`; it does not fit the config.json beside it")
        if got[name].shape != tensor.shape:
            raise UserError(
                f"{path}: `{name}` has shape {list(got[name].shape)}, but config.json describes "
                f"{list(tensor.shape)}; the two files are not of one model"
            )
    if surplus := set(got) - set(expected):
        raise UserError(f"{path} has unknown weights, such as `{min(surplus)}`")


def write_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Write a .safetensors file, whole or not at all.

    Raises:
        OSError: If the disk refuses.
    """
    with whole_file(path) as temporary:
        try:
            save_file(weights, temporary)
        except SafetensorError as error:
            # What the disk said is in its text alone, as in `... (os error 28)`.
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise OSError(str(error)) from error
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        temporary.chmod(0o666 & ~_umask())  # safetensors makes files for their owner alone


def _write(folder: Path, config: dict[str, Any], network: nn.Module) -> None:
    """Weights first, then the config that makes them visible; each renamed into place."""
    remedy = "free some space, or write elsewhere with --root, and run the same command again"
    weights = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    path = folder / WEIGHTS_FILE
    with must_be_written(path, remedy):
        write_weights(weights, path)
    path = folder / CONFIG_FILE
    with must_be_written(path, remedy), whole_file(path) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT_VERSION, **config}, indent=2) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _link_or_copy(source: Path, target: Path) -> None:
    """Share the file on disk where the file system can, else copy it."""
    if target.exists() and target.samefile(source):
        return
    with whole_file(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
