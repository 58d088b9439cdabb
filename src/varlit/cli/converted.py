"""Runs without a training: a folder that was converted or copied, used by the verbs of a stage.

Its `config.json` says what the recipe would, and its weights stand in for a checkpoint.
"""

import json
from pathlib import Path
from typing import Any

from varlit.errors import UserError


def model_config(run_dir: Path) -> dict[str, Any] | None:
    """Read what a folder without a recipe says of its model; None where it is a run, or nothing."""
    path = run_dir / "config.json"
    if (run_dir / "fit.yaml").is_file() or not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path} is not valid JSON; copy or convert the model again") from None
    return config if isinstance(config, dict) else None


def words_instead_of_a_recipe(stage: str, config: dict[str, Any], run_dir: Path) -> list[str]:
    """Flags that make the stage's module the model of the folder, without a checkpoint.

    Raises:
        UserError: If the folder holds the model of the other stage, or one that has no such verbs.
    """
    if config.get("model") != stage:
        raise UserError(f"{run_dir} holds a {config.get('model')}, not a model of stage {stage}")
    if stage != "tokenizer":
        raise UserError(
            f"{run_dir} holds a VAR and no recipe, so its training data are unknown; measure it "
            f"with: varlit evaluate {run_dir.name}"
        )
    words = ["--ckpt_path", "", "--model.init_from", str(run_dir)]
    for key, value in config["tokenizer"].items():
        words += [f"--model.tokenizer.{key}", json.dumps(value) if _is_list(value) else str(value)]
    # Nothing is trained: no loss is needed, and averaged weights would be a second copy.
    for setting in ("loss.perceptual_weight", "loss.disc_weight", "optim.ema_decay"):
        words += [f"--model.{setting}", "0"]
    return words


def _is_list(value: Any) -> bool:
    return isinstance(value, list)
