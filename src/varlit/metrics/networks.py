"""Feature networks: what images are compared by, behind one small interface.

Inception by default; MobileNetV2, a TorchScript file or anything registered can stand in. The
name travels with every number, and only Inception's distance is called FID.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varlit.errors import UserError
from varlit.ops.quantize import strict_fp32

INCEPTION = "inception"
BY_MODULE = "by the module itself"
_PROBE_PX = 32


@dataclass(frozen=True)
class Features:
    """What a network says of a batch of images, fp32."""

    pool: Tensor  # (B, D)
    spatial: Tensor | None = None  # (B, S) for sFID
    logits: Tensor | None = None  # (B, C) for the inception score


class FeatureNetwork:
    """A frozen network from uint8 images to features; a plain object, so in no checkpoint.

    It follows the device of the images and computes in strict fp32, whatever autocast says.

    Args:
        module: From uint8 (B, 3, H, W) to `Features`, a tensor (B, D), a pair of features and
            logits, or a dict with `pool` and perhaps `spatial` and `logits`.
        name: What its numbers are called by: letters, digits, `_`, `-` and `.`.
        weights_hash: sha256 of the weights; by default computed from the module's state.
        weights_file: Name of the file that they came from.
        input_px: Side that the network looks at; None = that of the images.
        resize: How images get to that size, in words.
        is_inception: Whether this is the network of FID. Nothing else may bear its name.
        remark: Why its numbers should not be trusted, in words, if so.

    Raises:
        UserError: If the name is taken or no name, or the output has another form.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        weights_hash: str = "",
        weights_file: str = "",
        input_px: int | None = None,
        resize: str = BY_MODULE,
        is_inception: bool = False,
        remark: str = "",
    ) -> None:
        if not re.fullmatch(r"[\w.-]+", name):
            raise UserError(
                f"a feature network's name is of letters, digits, _, - and .; got {name!r}"
            )
        if (name == INCEPTION) != is_inception:
            raise UserError(
                f"only Inception itself may be called {INCEPTION!r}, for its numbers are called "
                f"FID; got another network of the name {name!r}. Give it a name of its own"
            )
        for parameter in module.parameters():  # a scripted module has no `requires_grad_`
            parameter.requires_grad_(False)
        self._module = module.eval()
        self.name, self.is_inception = name, is_inception
        self.input_px, self.resize = input_px, resize
        self.hash = weights_hash or module_hash(module)
        self.weights_file, self.remark = weights_file, remark
        side = input_px or _PROBE_PX
        probe = self(torch.zeros(2, 3, side, side, dtype=torch.uint8))
        self.feature_dim = probe.pool.shape[1]
        self.spatial_dim = None if probe.spatial is None else probe.spatial.shape[1]
        self.num_classes = None if probe.logits is None else probe.logits.shape[1]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Features of uint8 images (B, 3, H, W), on their device.

        Raises:
            UserError: If the images or the module's output have another form.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise UserError(
                "feature networks take uint8 images (B, 3, H, W); got "
                f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}. "
                "Round them with to_uint8 first"
            )
        self._module.to(images.device)
        with strict_fp32(images.device):
            return _as_features(self._module(images), len(images), self.name)

    def protocol(self) -> dict[str, Any]:
        """Which network it is and how it looks at images, as plain data."""
        told: dict[str, Any] = {
            "features": self.name,
            "feature_dim": self.feature_dim,
            "weights_sha256": self.hash,
            "resize": self.resize,
            "precision": "float32 network without TF32, float64 statistics",
        }
        return told | ({"weights_file": self.weights_file} if self.weights_file else {})


Builder = Callable[[str | None], FeatureNetwork]
_REGISTERED: dict[str, Builder] = {}


def register_network(name: str, build: Builder) -> None:
    """Make a feature network of your own known to `open_network`, and so to the command line.

    Args:
        name: What `open_network` is asked for; the network's own name stands in the results.
        build: From the weights file that the user named, if any, to the network.

    Raises:
        UserError: If a network of that name ships with varlit.
    """
    if name in _own_builders():
        raise UserError(f"the feature network {name!r} ships with varlit; choose another name")
    _REGISTERED[name] = build


def open_network(
    name: str = INCEPTION, weights: str | None = None, trust_torchscript: bool = False
) -> FeatureNetwork:
    """The feature network of a name.

    Args:
        name: `inception`, `mobilenet_v2`, `torchscript`, or one that was registered.
        weights: Its file; each network says what it looks for where none is given.
        trust_torchscript: A TorchScript file is a program, not mere numbers: loading it runs it.
            Say yes only to files that you would also run as a script.

    Raises:
        UserError: If there is no such network, or its weights are not to be had.
    """
    if name == "torchscript":
        from varlit.metrics.torchscript import open_torchscript

        return open_torchscript(weights, trust_torchscript)
    builders = _own_builders() | _REGISTERED
    if name not in builders:
        known = ", ".join(sorted(builders | {"torchscript": None}))
        raise UserError(f"no feature network is called {name!r}; expected one of {known}")
    return builders[name](weights)


def _own_builders() -> dict[str, Builder]:
    from varlit.metrics.inception import open_inception
    from varlit.metrics.mobilenet import open_mobilenet

    return {INCEPTION: open_inception, "mobilenet_v2": open_mobilenet}


def sha256(path: Path) -> str:
    """Checksum of a file, to name it beyond doubt."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def module_hash(module: nn.Module) -> str:
    """sha256 over the names, shapes and values of a module's state.

    Two modules without any state have the same hash: functions are known by their name alone.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _as_features(found: Any, count: int, name: str) -> Features:
    """One form for all that a module may return."""
    parts: tuple[Any, Any, Any] = (None, None, None)
    if isinstance(found, Features):
        parts = (found.pool, found.spatial, found.logits)
    elif isinstance(found, Tensor):
        parts = (found, None, None)
    elif isinstance(found, dict):
        parts = (found.get("pool"), found.get("spatial"), found.get("logits"))
    elif isinstance(found, tuple | list) and len(found) == 2:
        parts = (found[0], None, found[1])
    pool, spatial, logits = (_rows(part) for part in parts)
    if pool is None or any(len(p) != count for p in (pool, spatial, logits) if p is not None):
        raise UserError(
            f"the feature network {name} must give one row an image: a tensor (B, D), a pair of "
            "features and logits, or a dict of `pool`, `spatial`, `logits`; got "
            + _told(found)
            + f" for {count} images"
        )
    return Features(pool, spatial, logits)


def _rows(part: Any) -> Tensor | None:
    return part.float().flatten(1) if isinstance(part, Tensor) and part.ndim >= 2 else None


def _told(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"a tensor {tuple(found.shape)}"
    if isinstance(found, dict):
        return f"a dict of {sorted(map(str, found))}"
    return type(found).__name__
