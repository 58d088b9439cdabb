"""A trained tokenizer with the verbs that need more than a network: files and the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from varlit.checkpoints.hub import Shareable
from varlit.models.files import save_tokenizer
from varlit.models.initialization import shapes_only
from varlit.models.vqvae import VQVAE


class PretrainedVQVAE(Shareable, VQVAE):
    """A trained tokenizer.

    `encode(images) -> tokens (B, L)`, `decode(tokens) -> images (B, 3, H, W) in [-1, 1]`,
    `teacher_inputs(tokens) -> (B, L - l_0, codebook_dim)`, `scales`, `with_scales(...)`.
    """

    kind = "tokenizer"

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> PretrainedVQVAE:
        """What `varlit.load` gives for the same name, refused if it is of another kind."""
        # Here and not above: `load` gives both kinds, so its file imports this one.
        from varlit.checkpoints.pretrained import load_kind

        return load_kind(cls, name, revision)

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
