"""What validation and testing of stage 1 measure on held-out images, and the settings for it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, distributed

from varlit.errors import UserError
from varlit.losses.perceptual import PerceptualLoss
from varlit.metrics.codebook import CodebookUsage
from varlit.metrics.networks import INCEPTION, FeatureNetwork, open_network
from varlit.metrics.ranks import OtherProcessError
from varlit.metrics.reconstruction import psnr, ssim, to_uint8
from varlit.models.config import PlainConfig, TokenizerConfig
from varlit.models.vqvae import VQVAE
from varlit.ops.scales import Scales
from varlit.training.reconstruction_distance import ReconstructionDistance, told_distance

NUM_WORST = 8
Opener = Callable[[Callable[[], FeatureNetwork]], FeatureNetwork]


@dataclass(frozen=True)
class TokenizerMeasuresConfig(PlainConfig):
    """What is measured besides PSNR, SSIM, L1 and code usage."""

    validate_rfid: bool = False
    """Measure rFID at every validation too, and keep the best; `test` always does. Where
    its network's weights are not to be had, a line says so and the rest goes on."""
    network: str = INCEPTION
    """What looks at images for rFID: inception, mobilenet_v2, torchscript, or a registered one."""
    weights: str = ""
    """The network's file; default for Inception $VARLIT_INCEPTION, the hub cache, a download."""
    trust_torchscript: bool = False
    """A TorchScript file is a program, and loading it runs it: say that you trust its author."""
    inception: str = ""
    """The older name of `weights`."""
    scale_batches: int = 4
    """Batches of each process, evenly spread, to decode from the first k scales too, for every k;
    0 = none."""

    def __post_init__(self) -> None:
        if self.scale_batches < 0:
            raise UserError(
                f"measures.scale_batches must not be negative (0 = none); got {self.scale_batches}"
            )


@dataclass(frozen=True)
class WorstImages:
    """The held-out images that a process reconstructs worst, worst first."""

    images: Tensor  # (N, 3, H, W) in [-1, 1]
    reconstructions: Tensor  # (N, 3, H, W)
    badness: Tensor  # (N,) LPIPS, or minus PSNR where the loss has no LPIPS

    def joined(self, others: Self, keep: int) -> Self:
        """The worst of both."""
        badness, place = torch.cat((self.badness, others.badness)).sort(descending=True)
        place = place[:keep]
        images = torch.cat((self.images, others.images))[place]
        reconstructions = torch.cat((self.reconstructions, others.reconstructions))[place]
        return type(self)(images, reconstructions, badness[:keep])


class TokenizerMeasures:
    """Measures reconstructions as a file would hold them, rounded to 8 bits.

    A plain object: Inception and the trunk of LPIPS are in no checkpoint.

    Args:
        tokenizer: Shape of the network that is measured.
        config: What to measure.
        perceptual: LPIPS, the same network that the loss has; None where the loss has none.
    """

    def __init__(
        self,
        tokenizer: TokenizerConfig,
        config: TokenizerMeasuresConfig,
        perceptual: PerceptualLoss | None,
    ) -> None:
        self.config, self.perceptual = config, perceptual
        self.scales = Scales(tokenizer.scales)
        self.usage = CodebookUsage(self.scales, tokenizer.codebook_size)
        # A hook for tests, which have no Inception.
        self.open_network: Callable[[], FeatureNetwork] = self._open_network
        self.rfid: ReconstructionDistance | None = None
        self.was_asked_for_rfid = False
        self._is_rfid_told = False
        self.worst: WorstImages | None = None

    @property
    def protocol(self) -> dict[str, Any]:
        """How it was measured, as plain data."""
        told: dict[str, Any] = {}
        if self.perceptual is not None:
            told["lpips"] = self.perceptual.net
        return told if self.rfid is None else told | self.rfid.protocol

    def begin(self) -> None:
        """Start a pass over the held-out images: count codes and features from zero."""
        self.worst = None
        self.usage = CodebookUsage(self.scales, self.usage.codebook_size)
        if self.rfid is not None:
            self.rfid.begin()

    def open_rfid(self, together: Opener) -> None:
        """Open Inception on all processes, or say what is missing and go on without.

        Args:
            together: `StageModule.open_together`.
        """
        self.was_asked_for_rfid = True
        try:
            self.use_rfid(together(self.open_network))
        except UserError as error:
            self.use_rfid(None)
            rank_zero_info(f"rFID is not measured: {error}")

    def use_rfid(self, network: FeatureNetwork | None) -> None:
        """Measure rFID by this network from now on, or not at all."""
        self.rfid = None if network is None else ReconstructionDistance(network)
        self._is_rfid_told = False

    def end(self, may_fail: bool = False) -> dict[str, float]:
        """What is known only after the whole set; every process must call it.

        Args:
            may_fail: Whether rFID is left out with a warning where it cannot be measured: a
                training of days must not end for a number beside it.

        Raises:
            Exception: Whatever kept rFID from being measured, if it may not fail.
        """
        report = self.usage.compute()
        found = {"code_usage": report.usage, "code_perplexity": report.perplexity}
        try:
            return found | self._end_rfid()
        except Exception as error:
            # Where the processes do not hear each other any more, no training goes on.
            if not may_fail or isinstance(error, distributed.DistBackendError):
                raise
            if not isinstance(error, OtherProcessError):
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                warnings.warn(f"no rFID this time ({reason}); training goes on", stacklevel=2)
            return found

    def _end_rfid(self) -> dict[str, float]:
        if self.rfid is None:
            return {}
        distance = self.rfid.compute()
        if not self._is_rfid_told:
            self._is_rfid_told = True
            rank_zero_info(told_distance(distance))
        # One name whatever the number of images: runs and their best are compared by it.
        return {f"r{distance.key('frechet').removeprefix('quick_')}": distance.frechet}

    @torch.no_grad()
    def measure(
        self, network: VQVAE, images: Tensor, batch_idx: int, num_batches: int
    ) -> dict[str, Tensor]:
        """Means over a batch.

        Args:
            network: In eval mode.
            images: (B, 3, H, W) in [-1, 1].
            batch_idx: Place of the batch in this pass.
            num_batches: Batches of this pass. Those decoded scale by scale are evenly spread over
                it: in class folders the first ones would be of one class.
        """
        tokens = network.encode(images)
        reconstruction = network.decode(tokens)
        self.usage.update(tokens)
        if self.rfid is not None:
            self.rfid.update(images, reconstruction)
        decibels = psnr(images, reconstruction)
        scalars = {
            "psnr": decibels.mean(),
            "ssim": ssim(images, reconstruction).mean(),
            "l1": (images - reconstruction).abs().mean(),
        }
        if self.perceptual is not None:
            distances = self.perceptual(_rounded(reconstruction), _rounded(images))
            scalars["lpips"] = distances.mean()
        badness = -decibels if self.perceptual is None else distances
        none = WorstImages(images[:0], reconstruction[:0], badness[:0])
        found = WorstImages(images, reconstruction, badness)
        self.worst = found.joined(self.worst or none, NUM_WORST)
        wanted = self.config.scale_batches
        if batch_idx * wanted % num_batches < wanted:
            for k, name in enumerate(self.scales.names):
                prefix = network.decode_prefix(tokens, k + 1)
                scalars[f"psnr_by_scale/{name}"] = psnr(images, prefix).mean()
        return scalars

    def _open_network(self) -> FeatureNetwork:
        config = self.config
        file = config.weights or config.inception or None
        return open_network(config.network, file, config.trust_torchscript)


def _rounded(images: Tensor) -> Tensor:
    return to_uint8(images).float() / 127.5 - 1
