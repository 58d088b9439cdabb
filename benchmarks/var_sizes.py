"""Stage 2 at the sizes that are benchmarked, with random weights and tokens."""

from dataclasses import dataclass, field, replace

import torch
from tokenizer_sizes import SIZES as TOKENIZER_SIZES
from torch import Tensor

from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.ops.costs import TransformerCosts, TransformerShape, transformer_costs
from varlit.ops.scales import OFFICIAL_SCALES, Scales
from varlit.ops.steps import Steps

SEED = 0
NUM_CLASSES = 1000
OFFICIAL = TokenizerConfig()


@dataclass(frozen=True)
class Size:
    """A transformer, the tokenizer whose tokens it predicts, and a batch."""

    var: VARConfig
    tokenizer: TokenizerConfig = OFFICIAL
    batch_size: dict[str, int] = field(default_factory=lambda: {"cpu": 1, "cuda": 1})
    """Images by device; on an 80 GB card with room for the eager reference."""
    cached_depths: tuple[int, ...] = ()
    """Depths at which cached tokens are compared with tokenising each step; () = its own."""
    target_images_per_s: float = 0.0
    """On an H100; 0 = none was set."""

    @property
    def scales(self) -> Scales:
        """The schedule of its pyramids."""
        return Scales(self.tokenizer.scales)

    @property
    def steps(self) -> Steps:
        """Which tokens are predicted together."""
        return self.var.steps(self.tokenizer.scales)

    @property
    def costs(self) -> TransformerCosts:
        """Operations for one image, by formula."""
        width = self.var.resolved_width
        mlp_width, codes = round(width * self.var.mlp_ratio), self.tokenizer.codebook_size
        shape = TransformerShape(self.var.depth, width, mlp_width, codes, self.steps)
        return transformer_costs(shape)


def _official(depth: int, num_images: int, target_images_per_s: float = 0.0) -> Size:
    batch = {"cpu": 1, "cuda": num_images}
    return Size(VARConfig(depth=depth), OFFICIAL, batch, (), target_images_per_s)


SIZES = {
    # For the tests.
    "tiny": Size(
        VARConfig(depth=2, width=64, num_heads=2),
        TOKENIZER_SIZES["tiny"].tokenizer,
        {"cpu": 2, "cuda": 2},
        cached_depths=(1, 2),
    ),
    # The transformer of conf/var/photos64.yaml, which two cores train in minutes.
    "photos64": Size(
        VARConfig(depth=6, width=192, num_heads=4),
        TOKENIZER_SIZES["photos64"].tokenizer,
        {"cpu": 16, "cuda": 64},
    ),
    # The transformers of the paper and smaller ones, at 256 px.
    "d4": _official(4, 256),
    "d8": _official(8, 128),
    "d12": _official(12, 96),
    "d16": replace(_official(16, 64, 415), cached_depths=(4, 8, 12, 16)),
    "d20": _official(20, 40, 232),
    "d24": _official(24, 24, 143),
    "d30": _official(30, 12, 78),
    # 512 px.
    "d36-s": Size(
        VARConfig(depth=36, shared_adaln=True),
        replace(OFFICIAL, scales=OFFICIAL_SCALES[512]),
        {"cpu": 1, "cuda": 2},
    ),
}


def at_depth(size: Size, depth: int) -> Size:
    """The same at another depth, width and heads following where they do."""
    return replace(size, var=replace(size.var, depth=depth))


def build_var(size: Size, device: torch.device) -> VAR:
    """A transformer in train mode, with the same random weights at every call."""
    torch.manual_seed(SEED)
    return VAR(size.var, size.tokenizer, NUM_CLASSES).to(device).train()


def build_tokenizer(size: Size, device: torch.device) -> VQVAE:
    """A frozen tokenizer, with the same random weights at every call."""
    torch.manual_seed(SEED)
    return VQVAE(size.tokenizer).eval().requires_grad_(False).to(device)


def random_tokens(size: Size, batch_size: int, device: torch.device) -> Tensor:
    """Pyramids of tokens as a cache gives them.  # (B, L)"""
    generator = torch.Generator().manual_seed(SEED)
    shape = (batch_size, size.scales.num_tokens)
    return torch.randint(size.tokenizer.codebook_size, shape, generator=generator).to(device)


def random_labels(batch_size: int, device: torch.device) -> Tensor:
    """Classes.  # (B,)"""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(NUM_CLASSES, (batch_size,), generator=generator).to(device)


def random_batch_of_images(size: Size, batch_size: int, device: torch.device) -> Tensor:
    """Noise in [-1, 1].  # (B, 3, H, W)"""
    generator = torch.Generator().manual_seed(SEED)
    side = size.tokenizer.image_size
    return (torch.rand(batch_size, 3, side, side, generator=generator) * 2 - 1).to(device)
