"""Evaluating a VAR in training: by `varlit var test`, and every so often while it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from varlit.errors import UserError
from varlit.generation.packed import PackedSampler
from varlit.generation.recorded.compiled import FastSampler, open_sampler
from varlit.generation.rejection.choice import Draw, Rejection, class_groups
from varlit.generation.rejection.request import free_classes
from varlit.generation.rejection.rule import RejectionCost
from varlit.generation.requests import check_fits
from varlit.generation.sampler import Drawn, ImageSeeds, Sampler
from varlit.metrics.networks import FeatureNetwork, module_hash
from varlit.metrics.published import model_name, published_figures
from varlit.metrics.references import Reference
from varlit.models.files import tokenizer_hash
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.training.comparability import why_not_comparable
from varlit.training.evaluation import FOLDER, Evaluation, Subject, evaluate
from varlit.training.evaluation_config import EvaluationConfig
from varlit.training.evaluation_references import check_given, open_references
from varlit.training.var_weights import VARWeights

EAGER = "eager"


@dataclass(frozen=True)
class VARTest:
    """An evaluation of which everything is at hand but the images.

    Attributes:
        config: What to draw.
        network: What looks at images; in no module, so in no checkpoint.
        references: What samples are compared with.
        rejection: What chooses among the images, if anything does.
    """

    config: EvaluationConfig
    network: FeatureNetwork
    references: tuple[Reference, ...]
    rejection: Rejection | None = None

    @staticmethod
    def open(
        module: VARWeights, config: EvaluationConfig, flags: str = "--model.evaluation."
    ) -> VARTest:
        """Open all that is needed, before anything is drawn; every process must call it.

        Args:
            module: In its trainer.
            config: What to draw.
            flags: How the flags begin by which the user gives settings.

        Raises:
            UserError: Of all that is missing.
        """
        datamodule = getattr(module.trainer, "datamodule", None)
        manifest = getattr(datamodule, "manifest", None)
        cache = None if manifest is None else manifest.folder
        names = tuple(getattr(datamodule, "class_names", ()))
        image_px = module.tokenizer.config.image_size
        network = module.open_together(lambda: open_network(config, cache, f"{flags}reference"))
        rejection = module.open_together(lambda: open_rejection(config, module.num_classes, names))
        if module.trainer.is_global_zero:
            tell_free_classes(rejection, names, module.num_classes)
        # Last, for to look at one takes minutes.
        references = open_references(config, network, image_px, module.device, cache)
        return VARTest(config, network, references, rejection)

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
            sampler = self._sampler(module)
            subject = self._subject(module, sampler)
            try:
                found = evaluate(subject, self.config, self.network, self.references, folder)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"out of GPU memory at evaluation.batch_size {size}; take {max(1, size // 2)}"
                ) from error
            return with_drawing(found, sampler)

    def _sampler(self, module: VARWeights) -> Sampler:
        """The module's averaged weights on its device.

        Amid a training nothing is recorded: a recording holds a copy of the weights, for which
        the training may have left no memory.
        """
        var = module.averaged.eval().to(module.device)
        may_record = None if module.trainer.testing else False
        return open_sampler(var, module.tokenizer, may_record, num_images=self.config.count)

    def _subject(self, module: VARWeights, sampler: Sampler) -> Subject:
        """Drawing in the precision of the module's trainer."""
        context = module.trainer.strategy.precision_plugin.forward_context
        precision = str(module.trainer.precision)
        return subject_of(sampler, self.config, precision, context, self.rejection)


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


def open_rejection(
    config: EvaluationConfig, num_classes: int, class_names: Sequence[str]
) -> Rejection | None:
    """What chooses among the images, checked against the classes; None where all are kept.

    Raises:
        UserError: If the classifier is not to be had, or does not fit the classes.
    """
    classes = range(min(num_classes, config.count))
    return config.rejection().open(num_classes, class_names, classes)


def tell_free_classes(
    rejection: Rejection | None, class_names: Sequence[str], num_classes: int
) -> None:
    """Say which classes nothing is chosen of, if there are any."""
    if line := free_classes(rejection, class_names, range(num_classes)):
        print(f"varlit: {line}", flush=True)


def subject_of(
    sampler: Sampler,
    config: EvaluationConfig,
    precision: str,
    context: Callable[[], AbstractContextManager[object]],
    rejection: Rejection | None = None,
    weights: dict[str, str] | None = None,
) -> Subject:
    """A VAR that draws as the settings say.

    Args:
        sampler: On the device.
        config: What to draw.
        precision: What `context` draws in, in words.
        context: Entered for each batch.
        rejection: What chooses among the images.
        weights: Of `weight_hashes`, where they are known already.

    Raises:
        UserError: If a weight is not finite, or the tokenizer does not fit.
    """
    check_fits(sampler.tokenizer, sampler.var)
    settings = config.sampling()
    with context():
        way = way_of(sampler)

    @torch.no_grad()
    def draw(labels: Tensor, seeds: list[int]) -> Drawn:
        with context():
            return sampler.draw(labels, settings, ImageSeeds(seeds))

    plain = Subject(
        draw=lambda labels, seeds: draw(labels, seeds).images,
        num_classes=sampler.var.num_classes,
        image_px=sampler.tokenizer.config.image_size,
        weights=weights or weight_hashes(sampler.var, sampler.tokenizer),
        precision=precision,
        device=sampler.var.device,
        # Another way of computing rounds otherwise, so it is another set; eager is what always was.
        more={} if way == EAGER else {"drawn": way},
    )
    return plain if rejection is None else choosing(plain, draw, rejection, config)


def way_of(sampler: Sampler) -> str:
    """How a sampler draws here and now, in a word: eager, packed, recorded or compiled."""
    if isinstance(sampler, PackedSampler) and sampler.is_packed:
        return "packed"
    if not isinstance(sampler, FastSampler):
        return EAGER
    return "recorded" if sampler.compile_mode == "none" else "compiled"


def with_drawing(found: Evaluation, sampler: Sampler) -> Evaluation:
    """The evaluation with how its images were drawn, which is no part of its name.

    Args:
        found: Of a subject that drew with `sampler`.
        sampler: It knows by now whether it had to do without a recording.
    """
    told = str(found.protocol["sampling"].get("drawn", EAGER))
    if isinstance(sampler, FastSampler) and sampler.told:
        told += f", some or all batches {EAGER}"
    return replace(found, protocol={**found.protocol, "drawn": told})


def titles_of(found: Evaluation) -> dict[str, str]:
    """What people read for each figure of `Evaluation.to_dict`, the distance first."""
    titles: dict[str, str] = {}
    for i, measures in enumerate(found.measures):
        beside = f" against {measures.protocol['reference']}" if i else ""
        pairs = zip(measures.to_dict(), measures.table(), strict=True)
        titles |= {f"{key}{beside}": f"{title}{beside}" for key, title in pairs}
    return titles


def choosing(
    subject: Subject, draw: Draw, rejection: Rejection, config: EvaluationConfig
) -> Subject:
    """The same subject, each class of which keeps the best of what `draw` gives.

    Args:
        subject: What draws.
        draw: What it draws with, whole.
        rejection: Its cost is left alone: each evaluation has its own.
        config: How many, in batches of how many candidates.
    """
    rejection = replace(rejection, cost=RejectionCost())
    choose = rejection.drawing(draw, config.batch_size)
    labels = [i % subject.num_classes for i in range(config.count)]
    return replace(
        subject,
        draw=lambda labels, seeds: choose(labels, seeds).images,
        more={**subject.more, **rejection.protocol()},
        groups=class_groups(labels, rejection.settings.group_size),
        cost=rejection.cost,
    )


def weight_hashes(var: VAR, tokenizer: VQVAE) -> dict[str, str]:
    """What all weights that draw are known by.

    Raises:
        UserError: If one is not finite: no image of it would be.
    """
    for network, name in ((var, "VAR"), (tokenizer, "tokenizer")):
        for key, weight in network.state_dict().items():
            if not weight.isfinite().all():
                raise UserError(
                    f"the weights of the {name} hold NaN or infinity, such as {key}; take an "
                    "earlier checkpoint"
                )
    return {"var_sha256": module_hash(var), "tokenizer_sha256": tokenizer_hash(tokenizer)}


def published_beside(module: VARWeights, found: Evaluation) -> dict[str, dict[str, float]]:
    """Published figures of the same model, by source; none beside a quick look."""
    if module.config.order == "raster":
        return {}
    width, px = module.config.resolved_width, module.tokenizer.config.image_size
    return published_of(module.config.depth, width, px, module.num_classes, found)


def published_of(
    depth: int, width: int, image_px: int, num_classes: int, found: Evaluation
) -> dict[str, dict[str, float]]:
    """Published figures of a model of this shape, by source; none where they do not compare."""
    if why_not_comparable(found.protocol):
        return {}
    name = model_name(depth, width, image_px, num_classes)
    # Chosen images compare with chosen ones alone.
    is_chosen = found.protocol.get("sampling", {}).get("keep", 1.0) < 1.0
    return published_figures(f"{name}-re" if is_chosen else name)
