"""The page's draughtsman: one model, one turn at a time, a frame after each scale."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from varlit.generation.editing.edits import finish_edit, known_of_edit
from varlit.generation.editing.known import KnownTokens
from varlit.generation.packed import open_stepwise
from varlit.generation.random_numbers import ImageSeeds
from varlit.generation.sampler import DrawnScale, SamplingSettings
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.page.class_titles import shown_titles
from varlit.page.command import Opened, command_line
from varlit.page.pictures import png_texts
from varlit.page.requests import (
    MAX_CFG_SCALE,
    MAX_SEED,
    MAX_TOP_K,
    MAX_VARIANTS,
    Bounds,
    DrawRequest,
)
from varlit.page.turns import Queue

Event = dict[str, Any]
MAX_WAITING = 4


class Studio:
    """Draws what the page asks for, as events that can be sent while it draws.

    Args:
        var: In eval mode.
        tokenizer: On the same device.
        opened: What the command to copy has to say of the model.
        is_bf16: Draw in bf16, as `varlit sample` does by itself on GPUs that have it.

    Attributes:
        card: What the page shows of the model, and the bounds of its controls.
    """

    def __init__(self, var: VAR, tokenizer: VQVAE, opened: Opened, is_bf16: bool = False) -> None:
        # Weights are cast or packed here, once. Each step is looked at, so there is no CUDA graph.
        dtype = torch.bfloat16 if is_bf16 else None
        self.sampler = open_stepwise(var, tokenizer, dtype)
        self.opened, self.is_bf16 = opened, is_bf16
        self.bounds = Bounds(var.num_classes, tokenizer.config.image_size)
        self.queue = Queue(MAX_WAITING)
        self.card = self._describe()

    def draw(
        self, request: DrawRequest, has_left: Callable[[], bool]
    ) -> Generator[Event, None, None]:
        """Draw a request; each event is ready to be sent.

        Closing the iterator stops drawing and gives the turn to the next; so does an answer of
        True from `has_left`, which is asked after every step.

        Raises:
            UserError: If a part of the request does not fit the model.
        """
        with self.queue.turn(has_left) as is_mine:
            if not is_mine:
                return
            start = time.perf_counter()
            yield {"event": "start", "command": command_line(request, self.opened)}
            steps = self.sampler.var.steps
            names = dict(zip(steps.frame_steps, steps.frame_names, strict=True))
            for drawn in self._steps(request):
                if has_left():
                    return
                if drawn.k in names:
                    images = self._finished(drawn.f_hat, request)
                    place = steps.frame_steps.index(drawn.k)
                    frame = {"frame": place, "name": names[drawn.k], "images": png_texts(images)}
                    yield {"event": "frame", **frame}
            yield {"event": "done", "seconds": round(time.perf_counter() - start, 3)}

    def _steps(self, request: DrawRequest) -> Iterator[DrawnScale]:
        """The sampling loop, under autocast while it computes and not while a frame is sent."""
        seeds = ImageSeeds([request.seed + i for i in range(request.num_variants)])
        labels = torch.full((request.num_variants,), request.label)
        steps = self.sampler.steps(labels, request.settings, seeds, self._known(request))
        while True:
            with self._precision():
                drawn = next(steps, None)
            if drawn is None:
                return
            yield drawn

    def _known(self, request: DrawRequest) -> KnownTokens | None:
        """The tokens of the rest of the picture, encoded once for all variants."""
        edit = request.edit
        if edit is None:
            return None
        image = edit.image.unsqueeze(0).to(self.sampler.var.device)
        settings = replace(edit.settings, variants=request.num_variants)
        with torch.no_grad():
            return known_of_edit(self.sampler.tokenizer, image, edit.mask, settings)

    @torch.no_grad()
    def _finished(self, f_hat: Tensor, request: DrawRequest) -> Tensor:
        """The pictures so far, (B, 3, H, W), with the given pixels where they are to stay."""
        with self._precision():
            images = self.sampler.tokenizer.decode_features(f_hat)
        edit = request.edit
        if edit is None:
            return images
        own, tokenizer = edit.image.unsqueeze(0).to(images), self.sampler.tokenizer
        settings = replace(edit.settings, variants=request.num_variants)
        return finish_edit(images, tokenizer, own, edit.mask, settings)

    def _precision(self) -> torch.autocast:
        device = self.sampler.var.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.is_bf16)

    def _describe(self) -> Event:
        defaults, steps = SamplingSettings(), self.sampler.var.steps
        num_codes = self.sampler.tokenizer.config.codebook_size
        return {
            "run": self.opened.run,
            "side_px": self.bounds.side_px,
            "frames": list(steps.frame_names),
            "num_classes": self.bounds.num_classes,
            "class_titles": list(shown_titles(self.bounds.num_classes, self.opened.class_names)),
            "max_variants": MAX_VARIANTS,
            "max_seed": MAX_SEED,
            "max_cfg_scale": MAX_CFG_SCALE,
            "max_top_k": MAX_TOP_K,
            "cfg_scale": defaults.cfg_scale,
            "top_k": min(defaults.top_k, num_codes),
            "top_p": defaults.top_p,
        }
