"""`varlit edit`: from flags to the task, and from the task to its pictures."""

from argparse import Namespace
from dataclasses import dataclass
from typing import TYPE_CHECKING

from varlit.cli.arguments import drawing_dtype
from varlit.cli.editing.inputs import (
    box_mask,
    check_mask,
    extent,
    read_mask,
    read_photo,
    read_whole,
)
from varlit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from varlit.checkpoints.pretrained_var import PretrainedVAR
    from varlit.generation.editing.edits import EditSettings
    from varlit.generation.editing.outpainting import Placed
    from varlit.generation.sampler import SamplingSettings

HALF_A_SIDE = 0.5
"""How far beyond a side if not told otherwise."""


@dataclass(frozen=True)
class Task:
    """What is drawn: a part of a photo, or the rest of a canvas that it lies on."""

    placed: "Placed"  # one picture; of a photo that fills its canvas, the part that is new
    is_canvas: bool
    remark: str  # how the photo is seen


def is_beyond(args: Namespace) -> bool:
    """Whether the flags ask for what lies beyond the edge of the photo."""
    return bool(args.outpaint) or args.place < 1


def open_task(args: Namespace, side_px: int) -> Task:
    """Read the photo and its mask, or lay it on its canvas.

    Args:
        args: What was typed.
        side_px: Side of the square that the model draws.

    Raises:
        UserError: If a file cannot be read or does not fit, or nothing is to be drawn.
    """
    from varlit.generation.editing.outpainting import Placed, place

    if is_beyond(args):
        photo = read_whole(args.photo, side_px, args.place)
        height, width = photo.pixels.shape[-2:]
        share = HALF_A_SIDE if args.extend is None else args.extend
        room = extent(args.outpaint or "1:1", share, (height, width), side_px)
        if room.canvas == (height, width):
            raise UserError(
                f"the photo fills its canvas of {width}x{height} px, so nothing is to be drawn; "
                "give another --outpaint, or --place below 1"
            )
        remark = f"{photo.remark}, on a canvas of {room.canvas[1]}x{room.canvas[0]}"
        return Task(place(photo.pixels.unsqueeze(0), room.canvas, room.corner), True, remark)
    photo = read_photo(args.photo, side_px)
    is_new = box_mask(args.box, side_px) if args.box else read_mask(args.mask, photo)
    is_new = check_mask(~is_new if args.invert else is_new)
    return Task(Placed(photo.pixels.unsqueeze(0), is_new), False, photo.remark)


def settings_of(args: Namespace) -> tuple["SamplingSettings", "EditSettings"]:
    """How tokens are drawn, and what of the photo is kept.

    Raises:
        UserError: If a value is out of range.
    """
    from varlit.generation.editing.edits import EditSettings
    from varlit.generation.sampler import SamplingSettings

    settings = SamplingSettings(
        args.cfg_scale, args.top_k, args.top_p, args.guidance, args.more_smooth
    )
    edit = EditSettings(
        args.variants,
        args.paste,
        args.feather_px,
        args.free_first_scale,
        args.hide_masked,
        args.refit_known,
    )
    return settings, edit


def draw_variants(var: "PretrainedVAR", task: Task, args: Namespace, label: int | None) -> "Tensor":
    """Draw the task `args.variants` times.

    Returns:
        (N, 3, H, W) in [-1, 1], on the CPU.

    Raises:
        UserError: If they do not fit into the memory of the GPU; it names a batch that does.
    """
    import torch

    from varlit.generation.editing.edits import draw_edits
    from varlit.generation.editing.outpainting import draw_around
    from varlit.generation.requests import Request

    settings, edit = settings_of(args)
    placed, device = task.placed, var.device.type
    dtype = drawing_dtype(args.precision, device)
    request = Request(var.tokenizer, args.seed, None, args.batch_size, dtype)
    # The transformer brings weights of its own; pictures are decoded under autocast.
    with torch.autocast(device, torch.bfloat16, enabled=dtype is not None):
        if task.is_canvas:
            return draw_around(var, request, placed, label, settings, edit).cpu()
        images = placed.images
        return draw_edits(var, request, images, placed.is_new, label, settings, edit).images.cpu()
