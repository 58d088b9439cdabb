"""MobileNetV2 as a feature network: real features of a real ImageNet classifier.

Its Frechet distance is no FID and is never called so.
"""

from __future__ import annotations

from varlit.metrics.networks import FeatureNetwork, sha256
from varlit.models.mobilenet import INPUT_PX, NAME, find_mobilenet, load_mobilenet


def open_mobilenet(weights: str | None = None) -> FeatureNetwork:
    """MobileNetV2 from the given file or `$VARLIT_MOBILENET`.

    Raises:
        UserError: If there is no such file, or it holds other weights.
    """
    path = find_mobilenet(weights)
    return FeatureNetwork(
        load_mobilenet(path),
        NAME,
        weights_hash=sha256(path),
        weights_file=path.name,
        input_px=INPUT_PX,
        resize=f"{INPUT_PX} px, bilinear, antialiased",
    )
