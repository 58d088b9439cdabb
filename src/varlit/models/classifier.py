"""Classifiers of images, any of torchvision's or timm's: who says what a drawn picture shows.

Weights come from a file; nothing is fetched unless `download` is asked for. Images are resized
and normalised as the weights want it.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from varlit.errors import UserError
from varlit.models.mobilenet import NAME as MOBILENET
from varlit.models.mobilenet import find_mobilenet, load_mobilenet
from varlit.ops.quantize import strict_fp32

CLASSIFIER_VARIABLE = "VARLIT_CLASSIFIER"
DOWNLOAD = "download"
_IMAGENET_CLASSES, _PROBE_PX = 1000, 64
_UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    AttributeError,
    SafetensorError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class View:
    """How images get to a classifier: shorter side, centre crop, normalisation."""

    resize_px: int
    crop_px: int
    interpolation: str
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in 0..1 as the network wants them."""
        side = min(images.shape[-2:])
        size = [round(length * self.resize_px / side) for length in images.shape[-2:]]
        # Bicubic overshoots, which a picture of 8 bits cannot.
        images = F.interpolate(images, size, mode=self.interpolation, antialias=True).clamp(0, 1)
        top, left = (round((length - self.crop_px) / 2) for length in size)
        images = images[..., top : top + self.crop_px, left : left + self.crop_px]
        mean, std = (images.new_tensor(list(v)).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std


class Classifier:
    """A frozen classifier of pictures as the sampler gives them; a plain object, in no checkpoint.

    It looks at what a file of 8 bits would hold, in strict fp32 whatever autocast says, and follows
    the device of the images.

    Args:
        network: From what `view` gives to logits (B, C), or to a tuple that ends with them.
        name: What it is called in reports.
        view: From images in 0..1 to the network's input; None = the network takes 0..255.
        class_names: Of its outputs, where they are known.
        weights_hash: sha256 of the file of its weights.

    Raises:
        UserError: If the network gives no row of logits an image, or names are of another number.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        view: Callable[[Tensor], Tensor] | None = None,
        class_names: Sequence[str] = (),
        weights_hash: str = "",
    ) -> None:
        self._network, self._view = network.eval().requires_grad_(False), view
        self.name, self.hash, self.class_names = name, weights_hash, tuple(class_names)
        self.num_classes = self(torch.zeros(1, 3, _PROBE_PX, _PROBE_PX)).shape[1]
        if self.class_names and len(self.class_names) != self.num_classes:
            raise UserError(
                f"the classifier {name} has {self.num_classes} outputs; got "
                f"{len(self.class_names)} class names"
            )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, 3, H, W) in [-1, 1]."""
        self._network.to(images.device)
        with strict_fp32(images.device):
            rounded = ((images.float().clamp(-1, 1) + 1) * 127.5).round()
            found = self._network(self._view(rounded / 255) if self._view else rounded)
        logits = found[-1] if isinstance(found, tuple) else found
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
            raise UserError(f"the classifier {self.name} must give a row of logits for each image")
        return logits.float()

    def protocol(self) -> dict[str, Any]:
        """Which classifier it is, as plain data."""
        return {"classifier": self.name, "classifier_weights_sha256": self.hash}


def open_classifier(name: str, weights: str | None = None) -> Classifier:
    """The classifier of a name.

    Args:
        name: `torchvision:NAME`, `timm:NAME`, or `mobilenet_v2` for the small file of
            `varlit.models.mobilenet`.
        weights: Its file; without one `$VARLIT_CLASSIFIER`. `download` lets torchvision or timm
            fetch their own.

    Raises:
        UserError: If there is no such classifier, or its weights are not to be had.
    """
    if name == MOBILENET:
        return _open_mobilenet(weights)
    library, _, model = name.partition(":")
    builders = {"torchvision": _torchvision, "timm": _timm}
    if library not in builders or not model:
        raise UserError(
            f"a classifier is torchvision:NAME, timm:NAME or {MOBILENET}; got {name!r}. Such as "
            "torchvision:convnext_base"
        )
    source = weights or os.environ.get(CLASSIFIER_VARIABLE, "")
    made = builders[library](model, source)
    if source == DOWNLOAD:
        network, path = _fetched(made, name), None
    else:
        path = _found(source, name, made.file_name)
        network = _filled(made, path, name)
    return _named(Classifier(network, name, made.view, weights_hash=_digest(path)))


@dataclass(frozen=True)
class _Made:
    """An architecture before it has weights."""

    build: Callable[..., nn.Module]
    fetch: Callable[[], nn.Module]
    view: View
    file_name: str  # what the library calls its own weights


def _torchvision(name: str, source: str) -> _Made:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise UserError(f"torchvision has no classifier {name!r}; see torchvision.models")
    known = list(models.get_model_weights(name))
    by_file = {weights.url.rsplit("/", 1)[1]: weights for weights in known}
    chosen = by_file.get(Path(source).name, models.get_model_weights(name).DEFAULT)
    spec = chosen.transforms()
    view = View(
        spec.resize_size[0], spec.crop_size[0], spec.interpolation.value, spec.mean, spec.std
    )
    # These two came from TensorFlow; with their weights torchvision turns this on by itself.
    own = {"transform_input": True} if name in {"googlenet", "inception_v3"} else {}

    def build(**options: Any) -> nn.Module:
        network: nn.Module = models.get_model(name, weights=None, **own, **options)
        return network

    def fetch() -> nn.Module:
        network = build()
        # torchvision's own way unpickles whatever lies in the hub's cache.
        state = chosen.get_state_dict(progress=True, check_hash=True, weights_only=True)
        network.load_state_dict(state)
        return network

    return _Made(
        build=build,
        fetch=fetch,
        view=view,
        file_name=chosen.url.rsplit("/", 1)[1],
    )


def _timm(name: str, source: str) -> _Made:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"timm:{name} needs timm ({error}): pip install timm") from error
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}; see timm.list_models()")
    spec = timm.data.resolve_data_config(model=timm.create_model(name, pretrained=False))
    crop = spec["input_size"][1]
    kind = "bilinear" if spec["interpolation"] == "bilinear" else "bicubic"
    view = View(int(crop / spec["crop_pct"]), crop, kind, spec["mean"], spec["std"])
    return _Made(
        build=lambda **options: timm.create_model(name, pretrained=False, **options),
        fetch=lambda: timm.create_model(name, pretrained=True),
        view=view,
        file_name="model.safetensors",
    )


def _open_mobilenet(weights: str | None) -> Classifier:
    path = find_mobilenet(weights)
    return _named(Classifier(load_mobilenet(path), MOBILENET, weights_hash=_digest(path)))


def _found(source: str, name: str, file_name: str) -> Path:
    path = Path(source).expanduser()
    if source and path.is_file():
        return path
    lead = f"no file {path}" if source else "none was given"
    raise UserError(
        f"the classifier {name} needs its weights, {lead}: give the path of {file_name} as the "
        f"weights or in ${CLASSIFIER_VARIABLE}; or {DOWNLOAD!r} as the weights fetches it"
    )


def _filled(made: _Made, path: Path, name: str) -> nn.Module:
    """The architecture with a file's weights, with as many classes as the file has."""
    try:
        is_safe = path.suffix == ".safetensors"
        state: Any = load_file(path) if is_safe else torch.load(path, "cpu", weights_only=True)
        state = state.get("state_dict", state.get("model", state))
        state = {key.removeprefix("module."): value.float() for key, value in state.items()}
        network = made.build()
        if (num_classes := _other_head(network, state)) is not None:
            network = made.build(num_classes=num_classes)
        network.load_state_dict(state)
    except _UNREADABLE as error:
        reason = (str(error).strip().splitlines() or ["it ends too early"])[0]
        raise UserError(f"{path} does not hold the weights of {name}: {reason}") from error
    return network


def _fetched(made: _Made, name: str) -> nn.Module:
    try:
        return made.fetch()
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the weights of {name} could not be fetched ({reason}): give the path of "
            f"{made.file_name} as the weights or in ${CLASSIFIER_VARIABLE}"
        ) from error


def _other_head(network: nn.Module, state: dict[str, Tensor]) -> int | None:
    """How many classes a file has, where they are others than the architecture's."""
    own = network.state_dict()
    heads = {
        len(value)
        for key, value in state.items()
        if key in own and value.ndim and value.shape != own[key].shape
        if value.shape[1:] == own[key].shape[1:]
    }
    return heads.pop() if len(heads) == 1 else None


def _named(classifier: Classifier) -> Classifier:
    """ImageNet's names for its 1,000 outputs."""
    if classifier.num_classes == _IMAGENET_CLASSES:
        from torchvision.models import MobileNet_V2_Weights

        names = MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
        classifier.class_names = tuple(names)
    return classifier


def _digest(path: Path | None) -> str:
    return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
