"""What metrics.json files of runs say, and which of it may stand beside published figures."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from varlit.errors import UserError
from varlit.metrics.published import model_name
from varlit.models.config import VARConfig
from varlit.training.comparability import number, why_not_comparable

METRICS_FILE, CONFIG_FILE = "metrics.json", "config.json"


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
        told = {"num_images": self.num_images, **self.protocol}
        return why_not_comparable(told) or ("" if "fid" in self.figures else "no FID")

    @property
    def how(self) -> str:
        """How its images were drawn and what they were compared with, in one line."""
        drawn = self.protocol.get("sampling", {})
        names = {"cfg_scale": "guidance", "guidance": "kind", "top_k": "top-k", "top_p": "top-p"}
        parts = [f"{name} {drawn.get(key, 'not told')}" for key, name in names.items()]
        parts += ["blended"] * bool(drawn.get("more_smooth"))
        parts += [f"keep {self.keep:g}"] * (self.keep < 1.0)
        parts.append(f"rounding {self.protocol.get('rounding', 'not told')}")
        sha = str(self.protocol.get("reference_sha256", "not told"))[:8]
        reference = self.protocol.get("reference", "not told")
        return f"{', '.join(parts)}; reference {reference} (sha256 {sha})"

    @property
    def keep(self) -> float:
        """Share of the images drawn that was kept; 1 = no rejection sampling."""
        keep = self.protocol.get("sampling", {}).get("keep", 1.0)
        return float(keep) if isinstance(keep, int | float) else 1.0

    @property
    def num_images(self) -> int:
        """Images that were drawn; 0 where the file does not tell."""
        return int(number(self.protocol.get("num_images", self.figures.get("num_images"))))

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
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({error}); measure the run again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected figures by name")
    protocol = content.get("protocol")
    protocol = protocol if isinstance(protocol, dict) else {}
    figures = {key: float(value) for key, value in content.items() if _is_number(value)}
    parts = {name: protocol.get(name, {}) for name in ("sampling", "versions")}
    if not all(isinstance(part, dict) for part in parts.values()) or not all(
        _is_number(protocol.get(name) or 0) for name in ("drawing_s", "num_images")
    ):
        raise UserError(f"{path} does not say how it was measured; measure the run again")
    model, steps = _model_of(path.parent)
    found = Result(
        name=path.parent.name if path.name == METRICS_FILE else path.stem,
        model=model,
        figures=figures,
        protocol=protocol,
        steps=steps,
    )
    return replace(found, model=f"{model}-re") if model and found.keep < 1.0 else found


def _is_number(value: Any) -> bool:
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and abs(value) <= sys.float_info.max


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
        var, tokenizer = VARConfig.of(config["var"]), config["tokenizer"]
        scales, stride = tokenizer["scales"], 2 ** (len(tokenizer["channel_multipliers"]) - 1)
        px, width = scales[-1] * stride, var.resolved_width
        name = model_name(var.depth, width, px, config["num_classes"])
        # The raster baseline has the shape of a published VAR, and is none.
        return "" if var.order == "raster" else name, len(scales)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        return "", None
    except RecursionError:
        return "", None
