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
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not valid JSON; copy or convert the model again") from None
    return config if isinstance(config, dict) else None


def words_instead_of_a_recipe(stage: str, config: dict[str, Any], run_dir: Path) -> list[str]:
    """Flags that make the stage's module the model of the folder, without a checkpoint.

    Raises:
        UserError: If the folder holds the model of the other stage.
    """
    if config.get("model") != stage:
        raise UserError(f"{run_dir} holds a {config.get('model')}, not a model of stage {stage}")
    words = ["--ckpt_path", "", "--model.init_from", str(run_dir)]
    if stage == "var":
        # The folder stands in for a token cache, unless the user's own flag names one.
        words += ["--data.tokens", str(run_dir)]
    from varlit.models.config import TokenizerConfig, VARConfig

    kind = TokenizerConfig if stage == "tokenizer" else VARConfig
    plain = kind.of(config.get(stage)).to_dict()  # type: ignore[arg-type]
    for key, value in ((key, plain[key]) for key in config[stage]):
        words += [f"--model.{stage}.{key}", json.dumps(value) if _is_list(value) else str(value)]
    # Nothing is trained: no loss is needed, and averaged weights would be a second copy.
    unused = ["optim.ema_decay"]
    unused += ["loss.perceptual_weight", "loss.disc_weight"] * (stage == "tokenizer")
    for setting in unused:
        words += [f"--model.{setting}", "0"]
    return words


def _is_list(value: Any) -> bool:
    return isinstance(value, list)
