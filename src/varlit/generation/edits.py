"""Several edits of each picture in one go, and its own pixels put back around what is new."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.generation.editing import check_images, known_outside, pixel_mask
from varlit.generation.requests import Labels, Request, as_classes, draw_request
from varlit.generation.sampler import Drawn, SamplingSettings
from varlit.models.var import VAR
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
    images, tokenizer = images.to(var.device), request.tokenizer
    classes = class_of_each(labels, len(images), var.num_classes)
    size = max(request.batch_size, 1)  # what is wrong with it is said when it is drawn
    known = known_outside(
        tokenizer,
        images,
        mask,
        size,
        edit.free_first_scale,
        edit.hide_masked,
        # A raster scan has one map, and no coarser one that could go astray.
        edit.refit_known and var.config.order == "next_scale",
    )
    each = torch.arange(len(images), device=var.device).repeat_interleave(edit.variants)
    drawn = draw_request(var, request, classes[each.cpu()], settings, known.rows(each))
    if not edit.keep_known_pixels:
        return drawn
    is_new = pixel_mask(mask, len(images), tokenizer).to(var.device)
    own = images[each].to(drawn.images.dtype)
    feather_px = edit.feather(tokenizer.config.stride)
    return replace(drawn, images=paste(drawn.images, own, is_new[each], feather_px))


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
