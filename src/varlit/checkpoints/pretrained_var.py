"""A trained transformer with the verbs that need more than a network: sample, edit, files, hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from varlit.checkpoints.hub import Shareable
from varlit.checkpoints.pretrained_vqvae import PretrainedVQVAE
from varlit.errors import UserError
from varlit.generation.editing.coarse import known_coarse
from varlit.generation.editing.edits import EditSettings, draw_edits
from varlit.generation.editing.outpainting import draw_around, place
from varlit.generation.recorded.kept import KeptSampler
from varlit.generation.rejection.choice import Classify
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
from varlit.models.files import LoadedVAR, save_var
from varlit.models.initialization import shapes_only
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE


class PretrainedVAR(Shareable, VAR):
    """A trained transformer and, where it was saved with one, its tokenizer.

    `var(labels (B,), teacher_inputs) -> logits (B, L, V)`, `scales`, `num_classes`.
    """

    kind = "VAR"
    class_names: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> PretrainedVAR:
        """What `varlit.load` gives for the same name, refused if it is of another kind."""
        # Here and not above: `load` gives both kinds, so its file imports this one.
        from varlit.checkpoints.pretrained import load_kind

        return load_kind(cls, name, revision)

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
        own.__dict__["_kept"] = KeptSampler()
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
        draw: str = "exact",
        seed: Seeds = None,
        generator: torch.Generator | None = None,
        return_tokens: bool = False,
        batch_size: int = 16,
        keep: float = 1.0,
        classifier: Classify | None = None,
        classifier_classes: Sequence[int | None] | None = None,
        coarse_tokens: Tensor | None = None,
        keep_scales: int = 0,
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
            draw: `exact` = the plain definition, `sorted` = faster, as likely, other pictures.
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
            coarse_tokens: Pyramids to start from, (B, L) or one for all images, (1, L).
            keep_scales: How many of their coarsest maps are kept; the finer ones are drawn.

        Returns:
            Images (B, 3, H, W) in [-1, 1], and the tokens where asked for.

        Raises:
            UserError: If a label or a setting is out of range, or the tokenizer does not fit.
        """
        settings = SamplingSettings(cfg_scale, top_k, top_p, guidance, more_smooth, draw)
        request = self._request(tokenizer, seed, generator, batch_size)
        classes = as_classes(labels, self.num_classes)
        known = known_coarse(self, coarse_tokens, keep_scales, len(classes))
        if keep == 1.0 and classifier is None:
            drawn = draw_request(self, request, classes, settings, known)
        elif known is not None:
            raise UserError(
                "give coarse_tokens or keep and classifier; together only varlit sample"
            )
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
        variants: int = 1,
        keep_known_pixels: bool = False,
        feather_px: int | None = None,
        free_first_scale: bool = False,
        hide_masked: bool = False,
        refit_known: bool = False,
        cfg_scale: float = 3.0,
        top_k: int = 900,
        top_p: float = 0.95,
        guidance: str = "var",
        more_smooth: bool = False,
        draw: str = "exact",
        seed: Seeds = None,
        generator: torch.Generator | None = None,
        return_tokens: bool = False,
        batch_size: int = 16,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draw a part of images anew: in-painting, class-conditional editing; docs/editing.md.

        Everything passes through the tokenizer: the rest of an image is its reconstruction, unless
        `keep_known_pixels` puts the image's own pixels back.

        Args:
            images: (B, 3, H, W) in [-1, 1], of the tokenizer's size.
            mask: True where the picture is drawn anew: (H, W) or (B, H, W) in pixels, or in cells
                of the finest token map.
            labels: Classes (B,) to draw, or one for all; None or `num_classes` continues what is
                there.
            tokenizer: Encodes and decodes; the one saved with this VAR when None.
            variants: Pictures of each image.
            keep_known_pixels: Outside the mask return the image itself, bit for bit, but for a
                ramp of `feather_px` at its edge.
            feather_px: Width of this ramp; half a cell of the finest map when None, 0 = a cut.
            free_first_scale: Draw the 1x1 map anew too: more freedom for another class.
            hide_masked: Encode a smooth filling in place of what is masked, so that nothing of it
                is remembered in the known tokens of coarse maps.
            refit_known: Correct what is known at each scale for what coarser ones made of it.
            cfg_scale: Guidance, as in `sample`; the default is the notebook's.
            top_k: As in `sample`.
            top_p: As in `sample`; the default is the notebook's.
            guidance: As in `sample`.
            more_smooth: As in `sample`; the notebook has it on.
            draw: As in `sample`.
            seed: As in `sample`, counted over all that is returned.
            generator: As in `sample`.
            return_tokens: Also give the tokens (B * variants, L).
            batch_size: As in `sample`.

        Returns:
            Images (B * variants, 3, H, W) in [-1, 1], all variants of the first image first, and
            the tokens where asked for.

        Raises:
            UserError: If the mask or the images are of another size or range, and as `sample`.
        """
        settings = SamplingSettings(cfg_scale, top_k, top_p, guidance, more_smooth, draw)
        edit = EditSettings(
            variants, keep_known_pixels, feather_px, free_first_scale, hide_masked, refit_known
        )
        request = self._request(tokenizer, seed, generator, batch_size)
        drawn = draw_edits(self, request, images, mask, labels, settings, edit)
        return (drawn.images, drawn.tokens) if return_tokens else drawn.images

    def outpaint(
        self,
        images: Tensor,
        canvas: tuple[int, int],
        labels: Labels = None,
        tokenizer: VQVAE | None = None,
        *,
        corner: tuple[int, int] | None = None,
        overlap: float = 0.5,
        variants: int = 1,
        feather_px: int | None = None,
        free_first_scale: bool = False,
        cfg_scale: float = 3.0,
        top_k: int = 900,
        top_p: float = 0.95,
        guidance: str = "var",
        more_smooth: bool = False,
        draw: str = "exact",
        seed: Seeds = None,
        generator: torch.Generator | None = None,
        batch_size: int = 16,
    ) -> Tensor:
        """Lay pictures of any ratio on a larger canvas and draw its rest; docs/editing.md.

        A canvas of more than one square of this VAR is drawn square by square, each continuing
        what is there by then. The pictures keep their pixels, but for the feather at their edge.

        Args:
            images: (B, 3, h, w) in [-1, 1].
            canvas: (H, W) in pixels, each at least the side that this VAR draws.
            labels: As in `edit`.
            tokenizer: As in `edit`.
            corner: (y, x) of the pictures' upper left corner; in the middle when None.
            overlap: Share of each square that should be there before it is drawn.
            variants: As in `edit`.
            feather_px: As in `edit`; the ramp lies on the pictures' own edge.
            free_first_scale: As in `edit`.
            cfg_scale: As in `edit`.
            top_k: As in `sample`.
            top_p: As in `edit`.
            guidance: As in `sample`.
            more_smooth: As in `sample`.
            draw: As in `sample`.
            seed: As in `edit`.
            generator: As in `sample`.
            batch_size: As in `sample`.

        Returns:
            Images (B * variants, 3, H, W) in [-1, 1], all variants of the first image first.

        Raises:
            UserError: If the canvas is too small, and as `edit`.
        """
        settings = SamplingSettings(cfg_scale, top_k, top_p, guidance, more_smooth, draw)
        edit = EditSettings(variants, feather_px=feather_px, free_first_scale=free_first_scale)
        request = self._request(tokenizer, seed, generator, batch_size)
        placed = place(images, canvas, corner)
        return draw_around(self, request, placed, labels, settings, edit, overlap)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `config.json`, `model.safetensors` and, where there is one, `tokenizer/`."""
        save_var(self, self.__dict__["_bundled"], Path(folder), self.class_names)
        return Path(folder)

    def _request(
        self,
        tokenizer: VQVAE | None,
        seed: Seeds,
        generator: torch.Generator | None,
        batch_size: int,
    ) -> Request:
        kept = self.__dict__["_kept"]
        return Request(self._fitting(tokenizer), seed, generator, batch_size, kept=kept)

    def _fitting(self, tokenizer: VQVAE | None) -> VQVAE:
        if tokenizer is None:
            return self.tokenizer
        check_fits(tokenizer, self)
        return tokenizer
