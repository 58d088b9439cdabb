import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from varlit.metrics.judge import NUM_TRAINING_DIGITS, DigitJudge, digit_features

HELDOUT = slice(NUM_TRAINING_DIGITS, None)


@pytest.fixture(scope="module")
def judge():
    return DigitJudge()


def enlarged(digits: np.ndarray, mode: str) -> torch.Tensor:
    images = torch.from_numpy(digits).float().view(-1, 1, 8, 8) / 8 - 1
    options = {} if mode == "nearest" else {"align_corners": False}
    large = torch.nn.functional.interpolate(images, size=(32, 32), mode=mode, **options)
    return large.clamp(-1, 1).expand(-1, 3, -1, -1)


def test_features_undo_an_enlargement_by_repetition_exactly():
    digits = load_digits().data[:20]
    features = digit_features(enlarged(digits, "nearest"))
    torch.testing.assert_close(features, torch.from_numpy(digits).float())


def test_features_undo_a_smooth_enlargement_to_within_a_grey_level():
    digits = load_digits().data
    error = digit_features(enlarged(digits, "bicubic")) - torch.from_numpy(digits)
    assert error.abs().mean() < 1


def test_black_is_0_and_white_is_16():
    images = torch.stack([-torch.ones(3, 16, 16), torch.ones(3, 16, 16)])
    assert digit_features(images).mean(dim=1).tolist() == [0, 16]


def test_the_judge_is_right_on_real_digits_that_it_did_not_see(judge):
    digits = load_digits()
    images = enlarged(digits.data[HELDOUT], "nearest")
    labels = torch.from_numpy(digits.target[HELDOUT])
    assert judge.accuracy(images, labels) == pytest.approx(judge.heldout_accuracy)
    assert 0.94 < judge.heldout_accuracy < 0.97


def test_the_judge_is_wrong_where_the_label_is(judge):
    digits = load_digits()
    images = enlarged(digits.data[:50], "nearest")
    labels = torch.from_numpy(digits.target[:50])
    assert judge.accuracy(images, labels) > 0.95
    assert judge.accuracy(images, (labels + 1) % 10) == 0
