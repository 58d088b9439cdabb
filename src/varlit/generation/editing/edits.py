"""Several edits of each picture in one go, and its own pixels put back around what is new."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.generation.arguments import check_batch_size
from varlit.generation.editing.known import (
    KnownTokens,
    check_images,
    check_mask,
    known_outside,
    pixel_mask,
)
from varlit.generation.memory import within_memory
from varlit.generation.requests import Labels, Request, as_classes, as_seeds, draw_request
from varlit.generation.sampler import Drawn, SamplingSettings
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.ops.blending import paste


@dataclass(frozen=True)
class EditSettings:
    """How a masked part is drawn anew; the defaults are those of the official notebook."""

    variants: int = 1
    """Pictures drawn of each image."""
    keep_known_pixels: bool = False
    """Return the image's own pixels outside the mask, not their reconstruction."""
    feather_px: int | None = None
    """Width of the ramp between own and drawn pixels, outside the mask; None = half a cell."""
    free_first_scale: bool = False
    """Draw the 1x1 map anew too, for a class that changes the whole picture."""
    hide_masked: bool = False
    """Encode a smooth filling in place of what is masked: nothing of it is remembered."""
    refit_known: bool = False
    """Correct the known part at each scale for what was drawn at coarser ones."""

    def __post_init__(self) -> None:
        if type(self.variants) is not int or self.variants < 1:
            raise UserError(f"variants must be a whole number from 1 on; got {self.variants!r}")
        width = self.feather_px
        if width is not None and (type(width) is not int or width < 0):
            raise UserError(f"feather_px must be 0 (a hard edge) or a whole number; got {width!r}")

    def feather(self, cell_px: int) -> int:
        """Width of the ramp where a cell of the finest map has a side of `cell_px`."""
        return cell_px // 2 if self.feather_px is None else self.feather_px


def draw_edits(
    var: VAR,
    request: Request,
    images: Tensor,
    mask: Tensor,
    labels: Labels,
    settings: SamplingSettings,
    edit: EditSettings,
) -> Drawn:
    """Draw the masked part of images anew.

    Args:
        var: Draws.
        request: Tokenizer, random numbers and images at a time.
        images: (B, 3, H, W) in [-1, 1].
        mask: As in `known_outside`.
        labels: A class for each image, or one for all; None continues what is there.
        settings: Guidance and filtering.
        edit: What is kept, and how often it is drawn.

    Returns:
        B * variants pictures, all variants of the first image first.

    Raises:
        UserError: If images, mask or labels do not fit each other or the tokenizer.
    """
    check_images(images)
    check_batch_size(request.batch_size)
    images, tokenizer = images.to(var.device), request.tokenizer
    each = _image_of_each(len(images), edit, torch.device("cpu"))
    classes = class_of_each(labels, len(images), var.num_classes)[each]
    as_seeds(request.seed, request.generator, len(each), classes, each)
    if not check_mask(mask, len(images), tokenizer).any():
        warnings.warn("the mask is empty, so nothing is drawn anew", stacklevel=3)
    known = known_of_edit(tokenizer, images, mask, edit, request.batch_size)
    drawn = draw_request(var, request, classes, settings, known)
    return replace(drawn, images=finish_edit(drawn.images, tokenizer, images, mask, edit))


def known_of_edit(
    tokenizer: VQVAE, images: Tensor, mask: Tensor, edit: EditSettings, batch_size: int = 16
) -> KnownTokens:
    """What an edit leaves as it is, encoded once for all variants of an image.

    Args:
        tokenizer: Encodes, on the device of the images.
        images: (B, 3, H, W) in [-1, 1].
        mask: As in `known_outside`.
        edit: What is kept, and how often it is drawn.
        batch_size: Images encoded at a time.

    Returns:
        Tokens of B * variants images, all variants of the first image first.

    Raises:
        UserError: As `known_outside`; or if a batch does not fit into the memory of the GPU.
    """

    def encode(count: int) -> KnownTokens:
        return known_outside(
            tokenizer,
            images[:count],
            mask if mask.dim() == 2 or len(mask) == 1 else mask[:count],
            batch_size,
            edit.free_first_scale,
            edit.hide_masked,
            edit.refit_known,
        )

    check_mask(mask, len(images), tokenizer)
    known = within_memory(encode, len(images), batch_size)
    return known.rows(_image_of_each(len(images), edit, images.device))


def finish_edit(
    drawn: Tensor, tokenizer: VQVAE, images: Tensor, mask: Tensor, edit: EditSettings
) -> Tensor:
    """What was drawn, with the images' own pixels where an edit keeps them.

    Args:
        drawn: (B * variants, 3, H, W), on the device of the images.
        tokenizer: Says how large a cell is.
        images: (B, 3, H, W) in [-1, 1].
        mask: As in `known_outside`.
        edit: Whether pixels are kept, and how wide the edge is.

    Returns:
        (B * variants, 3, H, W).
    """
    if not edit.keep_known_pixels:
        return drawn
    each = _image_of_each(len(images), edit, images.device)
    is_new = pixel_mask(mask, len(images), tokenizer).to(images.device)
    own, feather_px = images[each].to(drawn.dtype), edit.feather(tokenizer.config.stride)
    return paste(drawn, own, is_new[each], feather_px)


def _image_of_each(count: int, edit: EditSettings, device: torch.device) -> Tensor:
    """The place of the image that each variant is of.  # (count * variants,)"""
    return torch.arange(count, device=device).repeat_interleave(edit.variants)


def class_of_each(labels: Labels, count: int, num_classes: int) -> Tensor:
    """A class for each of `count` images, or one for all of them.  # (B,)

    Raises:
        UserError: If there are labels for another number of images, or one is out of range.
    """
    classes = as_classes(labels, num_classes)
    if not (labels.dim() if isinstance(labels, Tensor) else hasattr(labels, "__len__")):
        return classes.expand(count)
    if len(classes) != count:
        raise UserError(f"edit takes a label for each of {count} images; got {labels}")
    return classes
