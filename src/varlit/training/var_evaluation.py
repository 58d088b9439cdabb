"""Evaluating a VAR in training: by `varlit var test`, and every so often while it learns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.generation.sampler import ImageSeeds, Sampler
from varlit.metrics.networks import FeatureNetwork, module_hash
from varlit.metrics.published import VARS
from varlit.metrics.references import Reference
from varlit.models.files import tokenizer_hash
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.training.evaluation import FOLDER, Evaluation, Subject, evaluate
from varlit.training.evaluation_config import EvaluationConfig
from varlit.training.evaluation_references import check_given, open_references
from varlit.training.var_weights import VARWeights

# Of all published models.
NUM_CLASSES, WIDTH_OF_DEPTH = 1000, 64


@dataclass(frozen=True)
class VARTest:
    """An evaluation of which everything is at hand but the images.

    Attributes:
        config: What to draw.
        network: What looks at images; in no module, so in no checkpoint.
        references: What samples are compared with.
    """

    config: EvaluationConfig
    network: FeatureNetwork
    references: tuple[Reference, ...]

    @staticmethod
    def open(
        module: VARWeights, config: EvaluationConfig, flags: str = "--model.evaluation."
    ) -> VARTest:
        """Open network and references, before anything is drawn; every process must call it.

        Args:
            module: In its trainer.
            config: What to draw.
            flags: How the flags begin by which the user gives settings.

        Raises:
            UserError: Of all that is missing.
        """
        manifest = getattr(getattr(module.trainer, "datamodule", None), "manifest", None)
        cache = None if manifest is None else manifest.folder
        image_px = module.tokenizer.config.image_size
        network = module.open_together(lambda: open_network(config, cache, f"{flags}reference"))
        references = open_references(config, network, image_px, module.device, cache)
        return VARTest(config, network, references)

    def run(self, module: VARWeights, run_dir: Path | None) -> Evaluation:
        """Draw and measure; every process must call it.

        Args:
            module: In its trainer.
            run_dir: Where to save what is drawn, to go on after a cut; None = nowhere.

        Raises:
            UserError: As `evaluate`, or if a batch does not fit into the memory of the GPU.
        """
        folder = None if run_dir is None else run_dir / FOLDER
        size = self.config.batch_size
        with module.gathered(everywhere=True):
            subject = subject_of(module, self.config)
            try:
                return evaluate(subject, self.config, self.network, self.references, folder)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"out of GPU memory at evaluation.batch_size {size}; take {max(1, size // 2)}"
                ) from error


def open_network(config: EvaluationConfig, cache: Path | None, flag: str) -> FeatureNetwork:
    """Open the feature network, and name all that is missing in one message.

    Raises:
        UserError: If the network or a reference is not to be had.
    """
    missing = check_given(config, cache, flag)
    try:
        network = config.open_network()
    except UserError as error:
        missing.insert(0, str(error))
    if missing:
        raise UserError("\n        ".join(missing))
    return network


def subject_of(module: VARWeights, config: EvaluationConfig) -> Subject:
    """A module's averaged weights, drawing in the precision of its trainer."""
    network, tokenizer = module.averaged.eval(), module.tokenizer
    sampler, settings = Sampler(network.to(module.device), tokenizer), config.sampling()

    @torch.no_grad()
    def draw(labels: Tensor, seeds: list[int]) -> Tensor:
        with module.trainer.strategy.precision_plugin.forward_context():
            return sampler.draw(labels, settings, ImageSeeds(seeds)).images

    return Subject(
        draw=draw,
        num_classes=module.num_classes,
        image_px=tokenizer.config.image_size,
        weights=weight_hashes(network, tokenizer),
        precision=str(module.trainer.precision),
        device=module.device,
    )


def weight_hashes(var: VAR, tokenizer: VQVAE) -> dict[str, str]:
    """What all weights that draw are known by."""
    return {"var_sha256": module_hash(var), "tokenizer_sha256": tokenizer_hash(tokenizer)}


def published_beside(module: VARWeights, found: Evaluation) -> dict[str, dict[str, float]]:
    """Published figures of the same model, by source; none beside a quick look."""
    width, px = module.config.resolved_width, module.tokenizer.config.image_size
    return published_of(module.config.depth, width, px, module.num_classes, found)


def published_of(
    depth: int, width: int, image_px: int, num_classes: int, found: Evaluation
) -> dict[str, dict[str, float]]:
    """Published figures of a model of this shape, by source; none beside a quick look."""
    leading = found.measures[0]
    is_comparable = not leading.is_quick and leading.protocol["features"] == "inception"
    name = published_name(depth, width, image_px, num_classes)
    told = {}
    for row in VARS[name] if is_comparable and name else ():
        figures = {
            "fid": row.fid,
            "inception_score_mean": row.inception_score,
            "precision": row.precision,
            "recall": row.recall,
        }
        told[row.kind] = {key: value for key, value in figures.items() if value is not None}
    return told


def published_name(depth: int, width: int, image_px: int, num_classes: int) -> str:
    """Name of the published model of a shape, such as `d16`; "" where there is none."""
    for name in (f"d{depth}", f"d{depth}-s"):
        is_published = name in VARS and VARS[name][0].image_px == image_px
        if is_published and num_classes == NUM_CLASSES and width == WIDTH_OF_DEPTH * depth:
            return name
    return ""
