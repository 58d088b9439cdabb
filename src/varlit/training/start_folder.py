"""Where training starts from: the folder of a model that `model.init_from` names."""

from pathlib import Path

from varlit.errors import UserError
from varlit.models.files import CONFIG_FILE

RUNS_FOLDER = Path("runs")


def find_start(given: str, kind: str) -> Path:
    """Folder of the model that a path or the name of a run means.

    Args:
        given: What the user wrote.
        kind: `tokenizer` or `VAR`, for the message.

    Raises:
        UserError: If there is none.
    """
    path = Path(given).expanduser()
    candidates = [path, RUNS_FOLDER / path]
    for folder in candidates:
        if (folder / CONFIG_FILE).is_file():
            return folder
    if path.is_file():
        raise UserError(
            f"model.init_from {given} is a file; convert it first: varlit convert {given}"
        )
    places = " or ".join(str(folder) for folder in candidates)
    raise UserError(
        f"model.init_from {given}: no {CONFIG_FILE} in {places}; give a {kind}'s run or its "
        "folder, which has one after its first checkpoint"
    )
