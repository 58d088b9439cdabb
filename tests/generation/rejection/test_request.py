"""Rejection sampling as it is asked for: settled with the classes before anything is drawn."""

import pytest
import torch
from torch import nn

from varlit.errors import UserError
from varlit.generation.rejection.request import RejectionRequest, free_classes
from varlit.models.classifier import Classifier

NAMES = ("daisy", "rose", "tulip")


@pytest.fixture
def opened(monkeypatch) -> list[tuple]:
    """What classifiers were asked for; each is one of daisies, bees and tulips."""
    asked: list[tuple] = []

    def open_classifier(*given):
        asked.append(given)
        network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
        return Classifier(network, "toy", class_names=("daisy", "bee", "tulip"))

    monkeypatch.setattr("varlit.models.classifier.open_classifier", open_classifier)
    return asked


def test_keeping_all_opens_nothing(opened):
    assert RejectionRequest().open(3, NAMES, range(3)) is None
    assert opened == []


def test_a_request_becomes_what_chooses(opened):
    asked = RejectionRequest(0.25, "toy:toy", "w.pth", unmatched="keep")
    rejection = asked.open(3, NAMES, range(3), 7)
    assert opened == [("toy:toy", "w.pth")]
    assert rejection.targets == (0, None, 2)
    assert (rejection.settings.share, rejection.settings.group_size) == (0.25, 7)
    assert free_classes(rejection, NAMES, range(3)).endswith("all images are kept of: rose")
    assert free_classes(rejection, NAMES, [0, 2]) == free_classes(None, NAMES, range(3)) == ""
    assert rejection.classify(torch.zeros(1, 3, 8, 8)).shape == (1, 3)


def test_a_class_that_will_be_drawn_and_is_not_known_stops(opened):
    asked = RejectionRequest(0.25, "toy:toy")
    with pytest.raises(UserError, match="toy:toy has no class for: rose"):
        asked.open(3, NAMES, range(3))
    assert asked.open(3, NAMES, [0, 2]).targets == (0, None, 2)


def test_a_list_of_another_length_is_refused(opened):
    asked = RejectionRequest(0.25, "toy:toy", classifier_classes="0,1")
    with pytest.raises(UserError, match="each of the model's 3 classes"):
        asked.open(3, NAMES, range(3))
