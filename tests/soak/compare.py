"""What two folders of the same pipeline must have in common: everything but times."""

import json
import re
from pathlib import Path
from typing import Any

import torch

from varlit.training.checkpoint_files import damage

# Tags of metrics.jsonl that are times, or follow from them.
TIMES = re.compile(r"speed/.*")
# Curves for TensorBoard are appended to by each start; these tell when a command ran and where.
TOLD_APART = re.compile(r"(.*/)?(events\.out\.tfevents\..*|environment\.txt|tokens\.log|\.lock)")
# An evaluation's own files are named at random; what follows from them is compared.
DRAWN = re.compile(r"(.*/)rank-\d+-(\d+)-[0-9a-f]+\.pt")


def differences(whole: Path, found: Path) -> list[str]:
    """In what the second folder differs from the first, in a line each."""
    names, others = files(whole), files(found)
    told = [f"missing: {name}" for name in sorted(names.keys() - others.keys())]
    told += [f"left over: {name}" for name in sorted(others.keys() - names.keys())]
    for name in sorted(names.keys() & others.keys()):
        told += [f"{name}: {line}" for line in compare(names[name], others[name])]
    return told


def files(folder: Path) -> dict[str, Path]:
    """All files to be compared, by their place."""
    found = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {
        DRAWN.sub(r"\1rank-\2.pt", name): path
        for name, path in found.items()
        if not TOLD_APART.fullmatch(name)
    }


def compare(whole: Path, found: Path) -> list[str]:
    """In what two files differ."""
    if whole.suffix == ".ckpt":
        if "previous" in whole.name:  # of another step, where a signal had it saved
            return [damage(found)] if damage(found) else []
        return tree("", load(whole), load(found))
    if DRAWN.fullmatch(str(whole)):
        return []
    if whole.name == "metrics.jsonl":
        return tree("", rows(whole), rows(found))
    if whole.name == "metrics.json":
        return tree("", figures(whole), figures(found))
    return [] if whole.read_bytes() == found.read_bytes() else ["other bytes"]


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def rows(path: Path) -> dict[str, Any]:
    """Scalars by step and tag; of two lines the later one counts."""
    found: dict[str, Any] = {}
    for line in path.read_text().splitlines():
        values = json.loads(line)
        step = values.pop("step")
        found |= {f"{step} {tag}": v for tag, v in values.items() if not TIMES.fullmatch(tag)}
    return found


def figures(path: Path) -> dict[str, Any]:
    """What an evaluation found, and how, without the seconds that it took."""
    content = json.loads(path.read_text())
    protocol = content.get("protocol", {})
    content["protocol"] = {k: v for k, v in protocol.items() if not k.endswith("_s")}
    return content


def tree(place: str, whole: Any, found: Any) -> list[str]:
    """In what two nested values differ; tensors must be the same bit for bit."""
    if isinstance(whole, dict) and isinstance(found, dict):
        keys = [*whole, *(key for key in found if key not in whole)]
        lost = "(not there)"
        pairs = [(key, whole.get(key, lost), found.get(key, lost)) for key in keys]
    elif isinstance(whole, list | tuple) and isinstance(found, list | tuple):
        if len(whole) != len(found):
            return [f"{place} has {len(found)} entries, not {len(whole)}"]
        pairs = [(i, *pair) for i, pair in enumerate(zip(whole, found, strict=True))]
    elif isinstance(whole, torch.Tensor) and isinstance(found, torch.Tensor):
        same = whole.dtype == found.dtype and torch.equal(whole, found)
        return [] if same else [f"{place} is another tensor"]
    else:
        same = whole == found or (whole != whole and found != found)
        return [] if same else [f"{place} is {str(found)[:60]}, not {str(whole)[:60]}"]
    return [line for key, a, b in pairs for line in tree(f"{place}.{key}".lstrip("."), a, b)]
