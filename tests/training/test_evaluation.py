"""FID of a transformer: the set of samples is one set, however it is shared out."""

import pytest
import torch
from torch import Tensor, nn

from varlit.errors import UserError
from varlit.metrics.fid import InceptionMetrics
from varlit.training.evaluation import EvaluationConfig, measure_samples, open_metrics


class Pixels(nn.Module):
    """Stands in for Inception: mean colours and a few pixels."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        flat = images.float().flatten(1) / 255
        return flat[:, :6], flat[:, -4:]


def draw(labels: Tensor, seeds: list[int]) -> Tensor:
    """Images that depend on their own label and seed alone."""
    images = [
        torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in seeds
    ]
    return torch.stack(images) * (1 + labels.float().view(-1, 1, 1, 1) / 10).clamp(max=1)


def metrics() -> InceptionMetrics:
    made = InceptionMetrics(feature_network=Pixels, feature_name="pixels", num_splits=2)
    made.update_reference(draw(torch.zeros(64), list(range(1000, 1064))))
    return made


def test_the_figures_do_not_depend_on_the_batch_size():
    reports = [
        measure_samples(draw, 10, EvaluationConfig(num_images=40, batch_size=size), metrics())
        for size in (7, 40)
    ]
    assert reports[0].num_images == reports[1].num_images == 40
    assert reports[0].fid == pytest.approx(reports[1].fid, rel=1e-9)
    assert reports[0].inception_score_mean == pytest.approx(reports[1].inception_score_mean)


def test_the_shares_of_all_processes_are_the_whole_set_with_classes_evenly():
    seen: list[tuple[int, int]] = []

    def note(labels: Tensor, seeds: list[int]) -> Tensor:
        seen.extend(zip(labels.tolist(), seeds, strict=True))
        return draw(labels, seeds)

    for rank in range(3):
        config = EvaluationConfig(num_images=30, batch_size=4, seed=5)
        measure_samples(note, 10, config, metrics(), rank, 3)
    assert sorted(seed for _, seed in seen) == list(range(5, 35))
    assert all(label == (seed - 5) % 10 for label, seed in seen)


def test_what_is_missing_is_said_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VARLIT_INCEPTION", "/nowhere/inception.pth")
    with pytest.raises(UserError, match="no Inception weights at") as error:
        open_metrics(EvaluationConfig())
    assert "model.evaluation.reference" in str(error.value)


def test_nonsense_is_refused():
    with pytest.raises(UserError, match="at least 2 images"):
        EvaluationConfig(num_images=1)
    with pytest.raises(UserError, match="top_p"):
        EvaluationConfig(top_p=3.0)
