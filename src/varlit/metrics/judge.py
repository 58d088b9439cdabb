"""A judge of handwritten digits: a classifier that learns from real digits and nothing else.

It never sees a generated image before it judges it. Digits are compared in the 8x8 pixel space
in which scikit-learn ships them.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn import functional as F

NUM_TRAINING_DIGITS = 1500
SIDE_PX = 8
MAXIMUM = 16.0  # scikit-learn's digits count the ink of 4x4 binary pixels


def digit_features(images: Tensor) -> Tensor:
    """Digits as scikit-learn ships them: 8x8, one channel, 0..16.

    Args:
        images: (B, C, H, W) in [-1, 1], with sides that are multiples of 8.

    Returns:
        (B, 64) fp32: channels averaged, then areas.
    """
    grey = images.float().mean(dim=1, keepdim=True)  # (B, 1, H, W)
    small = F.interpolate(grey, size=(SIDE_PX, SIDE_PX), mode="area")
    return ((small + 1) * (MAXIMUM / 2)).flatten(1)


class DigitJudge:
    """scikit-learn's `SVC(gamma=0.001)`, fitted on the first 1,500 real digits at 8x8.

    `heldout_accuracy` is its share of right answers on the 297 real digits that it did not see:
    about 0.95, which bounds what its verdicts on generated digits are worth.
    """

    def __init__(self) -> None:
        from sklearn.datasets import load_digits
        from sklearn.svm import SVC

        digits = load_digits()
        train, heldout = slice(NUM_TRAINING_DIGITS), slice(NUM_TRAINING_DIGITS, None)
        self._classifier = SVC(gamma=0.001).fit(digits.data[train], digits.target[train])
        self.heldout_accuracy = float(
            self._classifier.score(digits.data[heldout], digits.target[heldout])
        )

    def predict(self, images: Tensor) -> np.ndarray:
        """Name the digit in each of (B, C, H, W) in [-1, 1]: (B,) int64."""
        named: np.ndarray = self._classifier.predict(digit_features(images).cpu().numpy())
        return named

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share of images (B, C, H, W) named as `labels` (B,) intends."""
        return float((self.predict(images) == labels.cpu().numpy()).mean())
