"""The public face of trained models: load, sample, edit, save, share; see docs/python.md.

`PretrainedVQVAE` and `PretrainedVAR` are the networks themselves, frozen, with the verbs that need
more than a network: the sampler's loop, files and the hub.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Self, TypeVar

import torch
from torch import Tensor

from varlit.checkpoints.hub import Shareable
from varlit.checkpoints.official import load_official
from varlit.checkpoints.store import RUNS_FOLDER, find_model
from varlit.errors import UserError
from varlit.generation.editing import check_images, known_outside
from varlit.generation.rejection import Classify
from varlit.generation.requests import (
    Choice,
    Labels,
    Request,
    Seeds,
    as_classes,
    check_fits,
    draw_chosen,
    draw_request,
)
from varlit.generation.sampler import SamplingSettings
from varlit.models.files import (
    LoadedVAR,
    load_tokenizer,
    load_var,
    read_model_config,
    save_tokenizer,
    save_var,
)
from varlit.models.initialization import shapes_only
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

P = TypeVar("P", "PretrainedVQVAE", "PretrainedVAR")


class PretrainedVQVAE(Shareable, VQVAE):
    """A trained tokenizer.

    `encode(images) -> tokens (B, L)`, `decode(tokens) -> images (B, 3, H, W) in [-1, 1]`,
    `teacher_inputs(tokens) -> (B, L - l_0, codebook_dim)`, `scales`, `with_scales(...)`.
    """

    kind = "tokenizer"

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> PretrainedVQVAE:
        """What `varlit.load` gives for the same name, refused if it is of another kind."""
        return _of_kind(cls, name, revision)

    @classmethod
    def of(cls, network: VQVAE) -> Self:
        """The same weights, not copied, with the verbs of this class."""
        with shapes_only():
            own = cls(network.config)
        own.load_state_dict(network.state_dict(), assign=True)
        return own.eval().requires_grad_(False)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `config.json` and `model.safetensors`."""
        save_tokenizer(self, Path(folder))
        return Path(folder)


class PretrainedVAR(Shareable, VAR):
    """A trained transformer and, where it was saved with one, its tokenizer.

    `var(labels (B,), teacher_inputs) -> logits (B, L, V)`, `scales`, `num_classes`.
    """

    kind = "VAR"
    class_names: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> PretrainedVAR:
        """What `varlit.load` gives for the same name, refused if it is of another kind."""
        return _of_kind(cls, name, revision)

    @classmethod
    def of(cls, loaded: LoadedVAR) -> Self:
        """The same weights, not copied, with the verbs of this class."""
        network = loaded.var
        with shapes_only():
            own = cls(network.config, network.tokenizer_config, network.num_classes)
        own.load_state_dict(network.state_dict(), assign=True)
        own.class_names = loaded.class_names
        # Past nn.Module's own setattr: the tokenizer is no part of this network's weights. The
        # network that was loaded is let go: after `.to("cuda")` it would keep its memory.
        bundled = None if loaded.bundled is None else PretrainedVQVAE.of(loaded.bundled)
        own.__dict__["_bundled"], own.__dict__["_folder"] = bundled, loaded.folder
        return own.eval().requires_grad_(False)

    @property
    def tokenizer(self) -> PretrainedVQVAE:
        """The tokenizer that was saved with it, always the same one; it follows to this device.

        Raises:
            UserError: If it was saved without one.
        """
        bundled = LoadedVAR(self, self.__dict__["_bundled"], self.__dict__["_folder"]).tokenizer
        assert isinstance(bundled, PretrainedVQVAE)
        if bundled.last_layer.device != self.device:
            bundled.to(self.device)
        return bundled

    def sample(
        self,
        labels: Labels,
        tokenizer: VQVAE | None = None,
        *,
        cfg_scale: float = 1.5,
        top_k: int = 900,
        top_p: float = 0.96,
        guidance: str = "var",
        more_smooth: bool = False,
        seed: Seeds = None,
        generator: torch.Generator | None = None,
        return_tokens: bool = False,
        batch_size: int = 16,
        keep: float = 1.0,
        classifier: Classify | None = None,
        classifier_classes: Sequence[int | None] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draw an image for each label; the defaults are official VAR's evaluation.

        Args:
            labels: Classes, one image each; `num_classes` or None is unconditional.
            tokenizer: Decodes the tokens; the one saved with this VAR when None.
            cfg_scale: Guidance; with `var`, 0 is none and the last scale has the weight 1 + this.
            top_k: Draw among the k likeliest codes; 0 = all, 1 = greedy.
            top_p: Draw among the likeliest codes that reach this probability; 0 = all.
            guidance: `var` = the official ramp over the scales, `constant` = the usual, 1 = none.
            more_smooth: Blend codes (official `more_smooth`); for looks, not for FID.
            seed: Image i is drawn from seed + i, with the same random numbers in every batch and on
                every device; or a seed for each image.
            generator: Draw all images as one batch from this, in the order of the official code;
                it must be on the device of this VAR.
            return_tokens: Also give the tokens (B, L).
            batch_size: Images at a time; it changes memory, and the images by rounding only.
            keep: Share of the images drawn that is kept, by the classifier (rejection sampling):
                0.25 draws four times as many of each class, from seeds 4 s, 4 s + 1 ...
            classifier: From images in [-1, 1] to logits; `varlit.models.classifier` opens some.
            classifier_classes: Its output for each class of this VAR, None where there is none;
                by default classes of the same name, or number where both have as many.

        Returns:
            Images (B, 3, H, W) in [-1, 1], and the tokens where asked for.

        Raises:
            UserError: If a label or a setting is out of range, or the tokenizer does not fit.
        """
        settings = SamplingSettings(cfg_scale, top_k, top_p, guidance, more_smooth)
        request = Request(self._fitting(tokenizer), seed, generator, batch_size)
        classes = as_classes(labels, self.num_classes)
        if keep == 1.0 and classifier is None:
            drawn = draw_request(self, request, classes, settings)
        else:
            choice = Choice(keep, classifier, classifier_classes)
            drawn = draw_chosen(self, request, classes, settings, choice, self.class_names)
        return (drawn.images, drawn.tokens) if return_tokens else drawn.images

    def edit(
        self,
        images: Tensor,
        mask: Tensor,
        labels: Labels = None,
        tokenizer: VQVAE | None = None,
        *,
        cfg_scale: float = 3.0,
        top_k: int = 900,
        top_p: float = 0.95,
        guidance: str = "var",
        more_smooth: bool = False,
        seed: Seeds = None,
        generator: torch.Generator | None = None,
        return_tokens: bool = False,
        batch_size: int = 16,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draw a part of images anew: in-painting, out-painting, class-conditional editing.

        Everything passes through the tokenizer, so the rest of an image is its reconstruction.

        Args:
            images: (B, 3, H, W) in [-1, 1], of the tokenizer's size.
            mask: True where the picture is drawn anew: (H, W) or (B, H, W) in pixels, or in cells
                of the finest token map.
            labels: Classes (B,) to draw; None or `num_classes` continues what is there.
            tokenizer: Encodes and decodes; the one saved with this VAR when None.
            cfg_scale: Guidance, as in `sample`; the default is the notebook's.
            top_k: As in `sample`.
            top_p: As in `sample`; the default is the notebook's.
            guidance: As in `sample`.
            more_smooth: As in `sample`; the notebook has it on.
            seed: As in `sample`.
            generator: As in `sample`.
            return_tokens: Also give the tokens (B, L).
            batch_size: As in `sample`.

        Returns:
            Images (B, 3, H, W) in [-1, 1], and the tokens where asked for.

        Raises:
            UserError: If the mask or the images are of another size or range, and as `sample`.
        """
        settings = SamplingSettings(cfg_scale, top_k, top_p, guidance, more_smooth)
        request = Request(self._fitting(tokenizer), seed, generator, batch_size)
        check_images(images)
        classes = as_classes([None] * len(images) if labels is None else labels, self.num_classes)
        if len(classes) != len(images):
            raise UserError(f"edit takes a label for each of {len(images)} images; got {labels}")
        images = images.to(self.device)
        known = known_outside(request.tokenizer, images, mask, max(batch_size, 1))
        drawn = draw_request(self, request, classes, settings, known)
        return (drawn.images, drawn.tokens) if return_tokens else drawn.images

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `config.json`, `model.safetensors` and, where there is one, `tokenizer/`."""
        save_var(self, self.__dict__["_bundled"], Path(folder), self.class_names)
        return Path(folder)

    def _fitting(self, tokenizer: VQVAE | None) -> VQVAE:
        if tokenizer is None:
            return self.tokenizer
        check_fits(tokenizer, self)
        return tokenizer


def load(
    name: str | Path, root: Path | str = RUNS_FOLDER, revision: str | None = None
) -> PretrainedVQVAE | PretrainedVAR:
    """Load a model, frozen and in eval mode, on the CPU.

    Args:
        name: Name of a run, a model's folder, an official `.pth` file, or `owner/model` on the
            Hugging Face hub; the first that exists, in this order.
        root: Where runs live.
        revision: Branch, tag or commit on the hub.

    Returns:
        A tokenizer or a transformer, whichever it is.

    Raises:
        UserError: If there is no such model or it is damaged.
    """
    if Path(name).is_file():
        return _load_official(Path(name))
    folder = find_model(name, root, revision)
    if read_model_config(folder)["model"] == "tokenizer":
        return PretrainedVQVAE.of(load_tokenizer(folder))
    return PretrainedVAR.of(load_var(folder))


def _of_kind(kind: type[P], name: str | Path, revision: str | None) -> P:
    model = load(name, revision=revision)
    if not isinstance(model, kind):
        raise UserError(f"{name} is not a {kind.kind}; load it with varlit.load")
    return model


def _load_official(path: Path) -> PretrainedVQVAE | PretrainedVAR:
    models = load_official(path)
    for note in models.notes:
        warnings.warn(note, stacklevel=3)
    if models.var is not None:
        return PretrainedVAR.of(LoadedVAR(models.var, models.tokenizer, path))
    assert models.tokenizer is not None
    return PretrainedVQVAE.of(models.tokenizer)
