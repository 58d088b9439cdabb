"""Shapes of the networks as plain dataclasses; their field docstrings are the `--help`."""

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args, get_type_hints

from varlit.errors import UserError
from varlit.models.field_types import as_plain, fits, told
from varlit.ops.raster import RasterScan
from varlit.ops.scales import OFFICIAL_SCALES, Scales
from varlit.ops.steps import Steps

GROUP_NORM_GROUPS = 32
MAX_LAYERS, MAX_WIDTH = 256, 2**20
"""A file or a flag that asks for more is a mistake, and building it would take hours."""
Order = Literal["next_scale", "raster"]


@dataclass(frozen=True)
class PlainConfig:
    """A dataclass that travels as plain data: to checkpoints, to config.json and back."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as numbers, strings and lists."""
        plain = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}

    @classmethod
    def of(cls, value: Self | dict[str, Any]) -> Self:
        """Accept the config itself or its plain form.

        Raises:
            UserError: If a key is unknown, the nearest known one is named; or if a field is of
                another type, or no finite number.
        """
        hints = get_type_hints(cls)
        if isinstance(value, cls):
            _check_types(cls, {name: getattr(value, name) for name in hints}, hints)
            return value
        if not isinstance(value, dict):
            raise UserError(f"{cls.__name__} is made of fields by name; got {value!r}")
        known = {field.name for field in fields(cls)}
        for key in value:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"; did you mean `{near[0]}`?" if near else f"; known: {sorted(known)}"
                raise UserError(f"{cls.__name__} has no field `{key}`{hint}")
        plain = {name: as_plain(part, hints[name]) for name, part in value.items()}
        _check_types(cls, plain, hints)
        return cls(**plain)


def _check_types(kind: type, plain: dict[str, Any], hints: dict[str, Any]) -> None:
    for name, value in plain.items():
        if not fits(value, hints[name]):
            got = f"{value!r}"[:80]
            raise UserError(f"{kind.__name__}: {name} must be {told(hints[name])}; got {got}")


@dataclass(frozen=True)
class TokenizerConfig(PlainConfig):
    """Shape of the multi-scale tokenizer; the defaults are those of official VAR."""

    channels: int = 160
    """Width of the autoencoder at full resolution, a multiple of `norm_groups`."""
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Width of each level over `channels`; every level after the first halves the side."""
    num_res_blocks: int = 2
    """Residual blocks per level of the encoder; the decoder has one more."""
    dropout: float = 0.0
    """Dropout inside the residual blocks."""
    codebook_size: int = 4096
    """V, the number of codes, shared by all scales."""
    codebook_dim: int = 32
    """Dimension of a code and channels of the latent map."""
    scales: tuple[int, ...] = OFFICIAL_SCALES[256]
    """Sides of the token maps, coarse to fine (`patch_nums` in the official code)."""
    num_phi: int = 4
    """Phi convolutions, partially shared by the scales; 1 = a single one, 0 = one per scale."""
    phi_ratio: float = 0.5
    """Share of the convolution in phi: (1 - ratio) * x + ratio * conv(x)."""
    search: Literal["euclidean", "cosine"] = "euclidean"
    """How the nearest code is found."""
    norm_groups: int = GROUP_NORM_GROUPS
    """Groups of group norm. With one channel a group, a narrow network forgets what is the same all
    over an image, its colours above all: keep four channels a group or more."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        Scales(self.scales)
        groups = self.norm_groups
        if groups < 1 or self.channels < 1 or self.channels % groups:
            nearest = max(1, round(self.channels / max(groups, 1))) * max(groups, 1)
            raise UserError(
                f"tokenizer.channels must be a multiple of norm_groups {groups} (group norm); "
                f"got {self.channels}. Try {nearest}"
            )
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise UserError(
                "tokenizer.channel_multipliers wants a positive number for each level, such as "
                f"[1,1,2,2,4]; got {list(self.channel_multipliers)}"
            )
        if self.num_phi < 0 or self.num_res_blocks < 1:
            raise UserError(
                "tokenizer.num_phi must be at least 0 and num_res_blocks at least 1; got "
                f"{self.num_phi} and {self.num_res_blocks}"
            )
        widest = max(self.channels * max(self.channel_multipliers), self.codebook_dim)
        layers = max(len(self.channel_multipliers) * self.num_res_blocks, self.num_phi)
        _check_size("tokenizer", max(widest, self.codebook_size // 2**8), layers)
        check_share("tokenizer.dropout", self.dropout)
        check_share("tokenizer.phi_ratio", self.phi_ratio, up_to_one=True)
        if self.codebook_size < 2 or self.codebook_dim < 1:
            raise UserError(
                "a codebook needs at least 2 codes of dimension 1; got "
                f"codebook_size {self.codebook_size}, codebook_dim {self.codebook_dim}"
            )

    @property
    def stride(self) -> int:
        """Pixels per side of the latent map's cells."""
        return int(2 ** (len(self.channel_multipliers) - 1))

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that this tokenizer speaks of."""
        return self.scales[-1] * self.stride

    def check_image_size(self, image_size_px: int) -> None:
        """Refuse images whose latent map is not the finest token map.

        Raises:
            UserError: With the side that the scales must end at.
        """
        if image_size_px == self.image_size:
            return
        if image_size_px % self.stride:
            raise UserError(
                f"image size {image_size_px} px is no multiple of the tokenizer's stride "
                f"{self.stride}; take {round(image_size_px / self.stride) * self.stride} px"
            )
        side = image_size_px // self.stride
        raise UserError(
            f"scales must end at {side} (image {image_size_px} px / stride {self.stride}); "
            f"got {list(self.scales)}. Try --model.tokenizer.scales {_suggest(side)}"
        )


@dataclass(frozen=True)
class VARConfig(PlainConfig):
    """Shape of the transformer. `depth` is the one dial: 16, 20, 24, 30 as in the paper."""

    depth: int = 16
    """Number of blocks; width, heads and drop path follow from it."""
    width: int = 0
    """C, the model dimension; 0 = 64 * depth."""
    num_heads: int = 0
    """Attention heads; 0 = depth, so that a head has 64 dimensions."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over `width`."""
    drop_path: float = -1.0
    """Stochastic depth of the last block, rising linearly from 0; -1 = 0.1 * depth / 24."""
    class_dropout: float = 0.1
    """Share of the labels replaced by the unconditional one while training, for guidance."""
    qk_l2_norm: bool = True
    """Normalise queries and keys to unit length with a learned scale per head."""
    shared_adaln: bool = False
    """One AdaLN projection for all blocks plus a small offset each (official d36-s)."""
    gamma_init: float = 1e-3
    """Scale of the initial residual gates (`alng`): 1e-3 for d16 and d20, 1e-5 for d30."""
    head_init: float = 0.02
    """Scale of the initial output projection, so that training starts at ln V."""
    order: Order = "next_scale"
    """What a step predicts: next_scale = a whole token map, as VAR does; raster = one token, row by
    row, over a tokenizer of a single scale: the baseline of the paper's ablation."""

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            known = " or ".join(get_args(Order))
            raise UserError(f"var.order must be {known}; got `{self.order}`")
        if self.depth < 1:
            raise UserError(f"var.depth must be at least 1; got {self.depth}")
        if self.width < 0 or self.num_heads < 0 or self.mlp_ratio <= 0:
            raise UserError(
                "var.width and var.num_heads must not be negative (0 = from depth) and "
                f"var.mlp_ratio positive; got {self.width}, {self.num_heads}, {self.mlp_ratio}"
            )
        width = max(self.resolved_width, self.resolved_heads)
        _check_size("var", max(width, self.mlp_ratio * 2**8), self.depth)
        check_share("var.class_dropout", self.class_dropout, up_to_one=True)
        check_share("var.drop_path", self.resolved_drop_path)
        if self.resolved_width % self.resolved_heads:
            raise UserError(
                f"var.width {self.resolved_width} does not divide into {self.resolved_heads} "
                "heads; set var.num_heads to a divisor"
            )

    @property
    def resolved_width(self) -> int:
        """C after the rule `64 * depth`."""
        return self.width or 64 * self.depth

    @property
    def resolved_heads(self) -> int:
        """Heads after the rule `depth`, kept when only the width was set."""
        return self.num_heads or self.depth

    @property
    def head_dim(self) -> int:
        """Dimensions of one attention head."""
        return self.resolved_width // self.resolved_heads

    @property
    def resolved_drop_path(self) -> float:
        """Stochastic depth after the rule `0.1 * depth / 24`."""
        return 0.1 * self.depth / 24 if self.drop_path < 0 else self.drop_path

    def steps(self, scales: Sequence[int]) -> Steps:
        """Which tokens are predicted together.

        Args:
            scales: Sides of the tokenizer's maps.

        Raises:
            UserError: For a raster scan of more maps than one.
        """
        if self.order == "next_scale":
            return Scales(tuple(scales))
        if len(scales) != 1:
            raise UserError(
                f"var.order raster scans a single token map; got a tokenizer of scales "
                f"{list(scales)}. Train one of scales [{scales[-1]}], as the recipe digits-raster "
                "does, or take var.order next_scale"
            )
        return RasterScan(scales[0])


def _check_size(name: str, width: float, layers: int) -> None:
    if width > MAX_WIDTH or layers > MAX_LAYERS:
        raise UserError(
            f"{name} is beyond all bounds: got {layers:,} layers and a width of {width:,.0f}; "
            f"expected at most {MAX_LAYERS:,} and {MAX_WIDTH:,}"
        )


def check_share(name: str, value: float, up_to_one: bool = False) -> None:
    """Refuse a share that is not one.

    Raises:
        UserError: If `value` is below 0 or above 1, or is 1 where that would leave nothing.
    """
    if not 0 <= value <= 1 or (value == 1 and not up_to_one):
        bound = "0..1" if up_to_one else "0..1, 1 excluded"
        raise UserError(f"{name} must lie in {bound}; got {value}")


def _suggest(side: int) -> str:
    """A plausible schedule that ends at `side`: the paper's when it fits, else growing steps."""
    known = {sides[-1]: sides for sides in OFFICIAL_SCALES.values()}
    if side in known:
        return str(list(known[side])).replace(" ", "")
    grown = [s for s in (1, 2, 3, 4, 6, 8, 11, 16, 22, 32, 45) if s < side]
    return str([*grown, side]).replace(" ", "")
