"""Testing a VAR without its training data: a model folder stands in for the token cache."""

from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from varlit.cli.config.converted import model_config
from varlit.cli.config.recipes import option_value, run_name
from varlit.data.module import GlobalBatchDataModule, Split
from varlit.errors import UserError
from varlit.models.files import CONFIG_FILE, TOKENIZER_FOLDER, read_model_config


class ModelFolder(GlobalBatchDataModule):
    """What a VAR's folder tells of the data that it was trained on: classes and tokenizer.

    It holds no pyramids: a test draws images and measures no held-out loss.

    Attributes:
        class_names: Names in the order of the labels, where the folder has them.
        num_classes: Number of classes.
        tokenizer_folder: The tokenizer inside the folder, as a path.

    Args:
        tokens: The folder. The others are those of the token cache, which it stands in for.
        batch_size: Not used.
        num_workers: Not used.
        seed: Not used.

    Raises:
        UserError: If the folder holds no tokenizer.
    """

    def __init__(
        self, tokens: str = "", batch_size: int = 256, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        folder = Path(tokens)
        config = read_model_config(folder)
        inside = folder / TOKENIZER_FOLDER
        if not (inside / CONFIG_FILE).is_file():
            raise UserError(
                f"{folder} holds no tokenizer, so its tokens cannot be drawn; convert the VAR "
                f"again with --tokenizer RUN, or copy a tokenizer's folder to {inside}"
            )
        self.class_names = tuple(config.get("class_names", ()))
        self.num_classes = int(config["num_classes"])
        self.tokenizer_folder = str(inside)

    def source(self, split: Split) -> None:
        """There are none."""
        return

    def test_dataloader(self) -> DataLoader[Any]:  # type: ignore[override]
        """One empty batch: without any, Lightning skips the test and draws nothing."""
        if self.rank == 0:
            print(
                "varlit: held-out loss and accuracy are left out, for no token cache is known; "
                "--data.tokens RUN names one",
                flush=True,
            )
        return DataLoader([{}], batch_size=None)  # type: ignore[arg-type]


def stands_in(verb: str, args: list[str]) -> bool:
    """Whether a verb of stage 2 is for a model folder without a recipe, and names no cache.

    Args:
        verb: Such as `test`.
        args: What follows it.

    Raises:
        UserError: If it needs a cache.
    """
    run_dir = Path(option_value(args, "--root") or "runs") / run_name("var", args)
    is_bare = verb != "fit" and model_config(run_dir) is not None
    if not is_bare or option_value(args, "--data.tokens") is not None:
        return False
    if verb != "test":
        raise UserError(
            f"{run_dir} holds a VAR and no recipe, so its training data are unknown; name a token "
            f"cache with --data.tokens RUN. Images need none: varlit var test --name {run_dir.name}"
        )
    return True
