"""Evaluation of what a transformer draws: draw, round, look, compare; resumable, on any processes.

Sample i has label i mod classes and random numbers of `seed + i`, and batches cover fixed ranges
of ids. So the set depends neither on the number of processes nor on where a run was cut off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varlit.data.progress import Progress
from varlit.data.whole_files import write_json
from varlit.errors import UserError
from varlit.generation.rejection.rule import RejectionCost
from varlit.metrics.image_features import ImageFeatures
from varlit.metrics.measures import Measures, measure
from varlit.metrics.networks import FeatureNetwork
from varlit.metrics.ranks import concatenate_over_ranks, in_all, place_among_ranks
from varlit.metrics.reconstruction import to_uint8
from varlit.metrics.references import Reference
from varlit.training.evaluation_config import EvaluationConfig
from varlit.training.evaluation_protocol import protocol_hash, told_cost, versions
from varlit.training.evaluation_samples import SampleFile
from varlit.training.evaluation_saved import SavedFeatures, begin_samples

PROTOCOL_VERSION = 2  # 1 kept the features of 10,000 samples for precision, recall and KID
FOLDER = "evaluation"
Draw = Callable[[Tensor, list[int]], Tensor]
"""Images (B, 3, H, W) in [-1, 1] of labels (B,) and a seed each."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        draw: Draws; what an image looks like may depend on its label and seed alone.
        num_classes: Labels are spread evenly over 0 .. num_classes - 1.
        image_px: Side of the images.
        weights: Hashes of all weights that draw, by name.
        precision: In which they draw, such as `bf16-mixed`.
        device: Where images are drawn and looked at.
        more: What else the images depend on, as plain data.
        groups: Ids of samples that must be drawn in one call, as those that compete for being
            kept; each id in one group. Empty = each by itself, in batches.
        cost: Grows as images are drawn and chosen; None where all are kept.
    """

    draw: Draw
    num_classes: int
    image_px: int
    weights: Mapping[str, str]
    precision: str = "32-true"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    more: Mapping[str, Any] = field(default_factory=dict)
    groups: Sequence[Sequence[int]] = ()
    cost: RejectionCost | None = None


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, against each reference, and how."""

    measures: tuple[Measures, ...]
    protocol: dict[str, Any]

    def to_dict(self) -> dict[str, float]:
        """Figures by name; those against further references carry the reference's name."""
        first, *others = self.measures
        told = first.to_dict()
        for other in others:
            reference = other.protocol["reference"]
            # A score looks at no reference, and was told already.
            scores = {other.key(name) for name in ("score_mean", "score_std", "score_whole")}
            figures = {key: v for key, v in other.to_dict().items() if key not in scores}
            told |= {f"{key} against {reference}": v for key, v in figures.items()}
        return told

    @property
    def remarks(self) -> tuple[str, ...]:
        """Why figures should not be trusted, each once."""
        return tuple(dict.fromkeys(r for m in self.measures for r in m.remarks))


def evaluate(
    subject: Subject,
    config: EvaluationConfig,
    network: FeatureNetwork,
    references: tuple[Reference, ...],
    folder: Path | None = None,
) -> Evaluation:
    """Draw the samples and measure them; every process must call it.

    Args:
        subject: What draws.
        config: How many and how.
        network: What looks at them.
        references: What they are compared with, the leading one first.
        folder: Where to save what is drawn, in a folder of the protocol's own; None = nowhere.

    Raises:
        UserError: On every process, if an image holds NaN, or on the first for a full disk.
    """
    about = drawing_protocol(subject, config, network)
    features = ImageFeatures(network, rounding=config.rounding)
    own = None if folder is None else folder / protocol_hash(about)
    drawing_s = in_all(
        lambda: _gather(subject, config, features, own, _plain_folder(folder, about))
    )
    drawn_s = time.monotonic()
    found = tuple(
        measure(features, reference, config.measuring(), subject.device) for reference in references
    )
    protocol = {
        **found[0].protocol,
        **about,
        "protocol_hash": protocol_hash(about),
        "is_quick": found[0].is_quick,
        "references": [reference.protocol() for reference in references],
        "remarks": list(dict.fromkeys(r for m in found for r in m.remarks)),
        "batch_size": config.batch_size,
        "num_processes": place_among_ranks()[1],
        "drawing_s": round(drawing_s, 1),
        "measuring_s": round(time.monotonic() - drawn_s, 1),
        **told_cost(subject.cost),
        "versions": versions(subject.device),
    }
    evaluation = Evaluation(found, protocol)
    if own is not None and place_among_ranks()[0] == 0:
        # Beside the features: a quick look overwrites the run's metrics.json, and not this one.
        write_json(own / "metrics.json", {**evaluation.to_dict(), "protocol": protocol})
    return evaluation


def drawing_protocol(
    subject: Subject, config: EvaluationConfig, network: FeatureNetwork
) -> dict[str, Any]:
    """All that the features of the samples depend on; a reference is not among it."""
    return {
        "protocol_version": PROTOCOL_VERSION,
        "sampling": {**config.drawing(), "num_classes": subject.num_classes, **subject.more},
        "weights": dict(subject.weights),
        "sampling_precision": subject.precision,
        "device": subject.device.type,
        "image_px": subject.image_px,
        "rounding": f"uint8, {config.rounding}",
        "feature_network": network.protocol(),
        "with_samples": bool(config.samples),
    }


def _plain_folder(folder: Path | None, about: Mapping[str, Any]) -> Path | None:
    """Where the same evaluation keeps its features if it writes no samples."""
    if folder is None or not about["with_samples"]:
        return None
    return folder / protocol_hash({**about, "with_samples": False})


def _gather(
    subject: Subject,
    config: EvaluationConfig,
    features: ImageFeatures,
    folder: Path | None,
    plain: Path | None = None,
) -> float:
    """Draw and look at this process's share of what is not yet there.

    Returns:
        Seconds of drawing, those of earlier runs included.
    """
    is_first = place_among_ranks()[0] == 0
    saved, file = None, None
    if folder is not None:
        saved, file = kept = in_all(lambda: _open_saved(subject, config, folder))
        in_all(lambda: begin_samples(*kept, plain) if is_first else None)
        if file is not None and in_all(lambda: kept[1] is not None and kept[1].is_written):
            file = None  # what is there already under the wanted name needs no more writing
        in_all(lambda: kept[0].load_into(features))
    elif config.samples:
        raise UserError("samples are written beside what is saved; give a folder")
    done = concatenate_over_ranks(features.ids)
    started = time.monotonic()
    in_all(lambda: _draw(subject, config, features, done, saved, file))
    took_s = time.monotonic() - started if saved is None else saved.drawing_s
    if file is not None:
        in_all(lambda: file.finish() if is_first else None)
    return took_s


def _open_saved(
    subject: Subject, config: EvaluationConfig, folder: Path
) -> tuple[SavedFeatures, SampleFile | None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error
    saved = SavedFeatures(folder, config.save_every_s, subject.cost)
    if not config.samples:
        return saved, None
    return saved, SampleFile(folder, Path(config.samples), config.count, subject.image_px)


def _draw(
    subject: Subject,
    config: EvaluationConfig,
    features: ImageFeatures,
    done: Tensor,
    saved: SavedFeatures | None,
    file: SampleFile | None,
) -> None:
    rank, world_size = place_among_ranks()
    todo = missing_batches(config.count, config.batch_size, done, subject.groups)
    num_left = sum(map(len, todo))
    progress = Progress("drawing and looking", config.count, config.count - num_left)

    def save() -> None:
        if file is not None:
            file.flush()
        if saved is not None:
            saved.save(features)

    for ids in todo[rank::world_size]:
        images = subject.draw(ids % subject.num_classes, (config.seed + ids).tolist())
        features.update(ids, images)
        if file is not None:
            file.write(ids, to_uint8(images, config.rounding))
        # The others are as far, about.
        progress.add(min(len(ids) * world_size, config.count - progress.done))
        if saved is not None and saved.is_due:
            save()
    progress.end()
    save()


def missing_batches(
    count: int, batch_size: int, done: Tensor, groups: Sequence[Sequence[int]] = ()
) -> list[Tensor]:
    """Ids of the samples that are still to be drawn: by fixed ranges of ids, or by groups."""
    is_missing = torch.ones(count, dtype=torch.bool)
    is_missing[done] = False
    ranges = list(map(torch.tensor, groups)) or list(torch.arange(count).split(batch_size))
    batches = [ids[is_missing[ids]] for ids in ranges]
    return [ids for ids in batches if len(ids)]
