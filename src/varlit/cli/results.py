"""What metrics.json files of runs say, and which of it may stand beside published figures."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from varlit.errors import UserError
from varlit.metrics.published import model_name

METRICS_FILE, CONFIG_FILE = "metrics.json", "config.json"
PUBLISHED_NUM_IMAGES = 50_000


@dataclass(frozen=True)
class Result:
    """The figures of one run."""

    name: str
    model: str  # the model of this shape, with `-re` if images were chosen; or empty
    figures: Mapping[str, float]
    protocol: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None

    @property
    def why_not(self) -> str:
        """Why its numbers may not stand in a column with published ones; empty if they may."""
        features = str(self.protocol.get("features", "unknown features"))
        if features != "inception":
            return f"by {features}, not Inception"
        if not self.num_images:
            return "number of images not told"
        if self.protocol.get("is_quick") or self.num_images < PUBLISHED_NUM_IMAGES:
            return f"quick: {self.num_images:,} images"
        return "" if "fid" in self.figures else "no FID"

    @property
    def keep(self) -> float:
        """Share of the images drawn that was kept; 1 = no rejection sampling."""
        keep = self.protocol.get("sampling", {}).get("keep", 1.0)
        return float(keep) if isinstance(keep, int | float) else 1.0

    @property
    def num_images(self) -> int:
        """Images that were drawn; 0 where the file does not tell."""
        told = self.protocol.get("num_images", self.figures.get("num_images", 0))
        return int(told) if isinstance(told, int | float) else 0

    @property
    def seconds_per_image(self) -> float | None:
        """Of drawing and looking, where the file tells."""
        seconds = self.protocol.get("drawing_s")
        return seconds / self.num_images if seconds and self.num_images else None

    @property
    def machine(self) -> str:
        """What it was drawn on; times of two machines are not compared."""
        versions = self.protocol.get("versions", {})
        return f"{versions.get('gpu', 'cpu')} x {self.protocol.get('num_processes', 1)}"


def read_result(name: str, root: Path) -> Result:
    """The figures of a run, by its name, its folder, or its metrics.json.

    Raises:
        UserError: If there are none, or the file is damaged.
    """
    path = _file_of(name, root)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({error}); measure the run again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected figures by name")
    protocol = content.get("protocol")
    protocol = protocol if isinstance(protocol, dict) else {}
    figures = {
        key: float(value)
        for key, value in content.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    model, steps = _model_of(path.parent)
    found = Result(
        name=path.parent.name if path.name == METRICS_FILE else path.stem,
        model=model,
        figures=figures,
        protocol=protocol,
        steps=steps,
    )
    return replace(found, model=f"{model}-re") if model and found.keep < 1.0 else found


def _file_of(name: str, root: Path) -> Path:
    candidates = [Path(name), Path(name) / METRICS_FILE, root / name / METRICS_FILE]
    for path in candidates:
        if path.is_file():
            return path
    is_run = any(path.is_dir() for path in (Path(name), root / name))
    remedy = f"varlit evaluate {name}" if is_run else f"runs live in {root}/"
    raise UserError(f"no figures of `{name}`: no {candidates[-1]}; {remedy}")


def _model_of(folder: Path) -> tuple[str, int | None]:
    """The published model of a run's shape, and its number of scales, where config.json tells."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        var, tokenizer = config["var"], config["tokenizer"]
        scales, stride = tokenizer["scales"], 2 ** (len(tokenizer["channel_multipliers"]) - 1)
        width = var["width"] or 64 * var["depth"]
        name = model_name(var["depth"], width, scales[-1] * stride, config["num_classes"])
        # The raster baseline has the shape of a published VAR, and is none.
        return "" if var.get("order") == "raster" else name, len(scales)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return "", None
