"""Training from cached tokens: the data module of stage 2."""

import warnings
from pathlib import Path
from typing import Any, Literal

import torch

from varlit.data.loader import BatchSource
from varlit.data.module import GlobalBatchDataModule
from varlit.data.tokens.manifest import (
    MANIFEST_FILE,
    SPEC_FILE,
    TOKENIZER_FOLDER,
    read_manifest,
    remake_command,
)
from varlit.data.tokens.reader import TokenDataset, open_tokens
from varlit.data.tokens.resident import Resident, ResidentTokens, check_fits
from varlit.errors import UserError
from varlit.ops.scales import Scales

RUNS_FOLDER = "runs"


class TokenDataModule(GlobalBatchDataModule):
    """Token pyramids that a tokenizer wrote, for training a VAR.

    Batches: tokens (B, L) int64 and label (B,) int64.

    Attributes:
        class_names: Names in the order of the labels.
        num_classes: Number of classes.
        scales: The schedule of token maps.
        tokenizer_folder: The tokenizer that wrote the cache, as a path.
        tokenizer_hash: Its fingerprint.

    Args:
        tokens: A tokenizer's run (name or folder), or the folder of a cache.
        batch_size: Over all devices and accumulation steps.
        num_workers: Processes that read data, for each device; a memory map needs none.
        seed: Seed of order and choice of crops.
        resident: Where the tokens lie: on disk as a memory map that all processes share, in RAM
            (a copy for each process), or on the device. The batches are the same.

    Raises:
        UserError: If there is no finished cache; names the command that makes it.
    """

    def __init__(
        self,
        tokens: str = "",
        batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        resident: Resident = "disk",
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.resident = resident
        if resident != "disk" and num_workers:
            warnings.warn(
                f"data.num_workers {num_workers} is ignored: with data.resident {resident} there "
                "is nothing to read.",
                stacklevel=2,
            )
            self.num_workers = 0
        self.manifest = read_manifest(find_cache(tokens))
        self.class_names = self.manifest.spec.class_names
        self.num_classes = len(self.class_names)
        self.scales = Scales(self.manifest.spec.scales)
        self.tokenizer_hash = self.manifest.spec.tokenizer_hash
        self.tokenizer_folder = str(self.manifest.folder / TOKENIZER_FOLDER)
        self._datasets: dict[str, TokenDataset] = {}
        self._residents: dict[str, ResidentTokens] = {}

    def setup(self, stage: str) -> None:
        """Check the files of the cache before anything is built.

        Raises:
            UserError: If a file is missing, truncated or corrupt, or a label none of the classes.
        """
        for split in self.manifest.splits:
            self._dataset(split)
        if self.resident != "disk" and not self._residents:
            self._take_into_memory()

    def source(self, split: Literal["train", "val"]) -> BatchSource | None:
        """Return the pyramids of a split; None if the cache has no such split."""
        if split not in self.manifest.splits:
            return None
        if self.resident != "disk" and not self._residents:
            self._take_into_memory()
        return self._residents.get(split) or self._dataset(split)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Gather pyramids that lie on the device; Lightning calls it when the rows are there."""
        if not isinstance(batch, dict) or "row" not in batch:
            return batch
        return self._residents[batch["split"]].gather(batch["row"], batch["crop"])

    def _take_into_memory(self) -> None:
        """Read all splits.

        Raises:
            UserError: If there is no room for them.
        """
        device, num_processes = None, 1
        if self.trainer is not None:
            num_processes = self.trainer.num_devices
        if self.resident == "device":
            device = (
                torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
            )
        check_fits(self.manifest.num_bytes("tokens"), device or torch.device("cpu"), num_processes)
        for split in self.manifest.splits:
            self._residents[split] = ResidentTokens(self._dataset(split), split, device)

    def _dataset(self, split: str) -> TokenDataset:
        if split not in self._datasets:
            self._datasets[split] = open_tokens(self.manifest.folder, split, self.seed)
        return self._datasets[split]


def find_cache(tokens: str) -> Path:
    """Find the cache that a path or the name of a run means.

    Raises:
        UserError: If there is none.
    """
    if not tokens:
        raise UserError(
            "no token cache: set data.tokens to a tokenizer's run; train it with `make "
            "train-tokenizer`, make its cache with `make cache-tokens NAME=<tokenizer run>` "
            "(CONF=digits, for all of these, needs no download)."
        )
    given = Path(tokens).expanduser()
    candidates = [given, given / "tokens", Path(RUNS_FOLDER) / given / "tokens"]
    for marker in (MANIFEST_FILE, SPEC_FILE):
        for folder in candidates:
            if (folder / marker).is_file():
                return folder
    raise UserError(
        f"no token cache in {', '.join(repr(str(folder)) for folder in candidates)}: make it with "
        f"`{remake_command(given if given.name == 'tokens' else given / 'tokens')}` once its "
        "tokenizer is trained (`make train-tokenizer`; CONF=digits, for all of these, needs no "
        "download)."
    )
